"""Joining the other processes of a run, which meet at the coordinator, process 0."""

from __future__ import annotations

import errno
import socket

import jax

from dlrm_jax.backend import devices
from dlrm_jax.errors import UserError
from dlrm_jax.processes import on_process_0

CLUSTER = "cluster"
"""Value of the coordinator's address for which JAX detects it from the cluster."""

# A process without a heartbeat for so long counts as dead, and the others end.
_HEARTBEAT_SECONDS = 25
# Limits of waiting for the others at the start, when they may still be scheduled, and at the end.
_START_SECONDS = 300
_END_SECONDS = 60

_coordinators: list[str] = []  # that this process has joined: one at most


def join(coordinator: str, count: int, index: int | None) -> None:
    """Joins the other processes of a run; call it before JAX is used for the first time.

    From then on, a process that dies ends the others: those that compute together with it notice
    immediately, all others miss its heartbeat.

    Args:
        coordinator: address of process 0, ``HOST:PORT``, which all processes can reach; or
            `CLUSTER`, if Slurm, Kubernetes, Open MPI or Cloud TPU has started the processes.
        count: number of processes.
        index: number of this process, from 0; None for `CLUSTER`.

    Raises:
        UserError: the arguments don't fit, there is no cluster, or the others can't be reached.
    """
    automatic = coordinator == CLUSTER
    if automatic != (index is None):
        raise UserError(
            f"expected the number of this process with a coordinator HOST:PORT, and none with "
            f"{CLUSTER!r}, got coordinator {coordinator!r} and process {index}"
        )
    if index is not None and not 0 <= index < count:
        raise UserError(f"expected a process number from 0 to {count - 1}, got {index}")
    host, _, port = coordinator.rpartition(":")
    # With another index, JAX would wait for the others in vain.
    if not automatic and not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(
            f"coordinator: expected HOST:PORT, with a port from 1 to 65535, or {CLUSTER}, got "
            f"{coordinator!r}"
        )
    if index == 0:
        _check_port(coordinator, int(port))
    _coordinators.append(coordinator)
    # Its own handler would catch SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            None if automatic else coordinator,
            count,
            index,
            # In a cluster, too, use all devices of each process, not one.
            cluster_detection_method=None if automatic else "deactivate",
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_END_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        missing = (
            "is this Slurm, Kubernetes with JAX's k8s extra, Open MPI or Cloud TPU?"
            if automatic
            else "were all of them started, each with the same coordinator and its own number?"
        )
        raise UserError(
            f"cannot join the {count} processes at {coordinator}: {str(error).splitlines()[0]} "
            f"{missing}"
        ) from error
    # The first exchange connects the processes, and waits half a minute for the others; later ones
    # wait as long as another process works.
    devices()  # without any, JAX ends without a word
    on_process_0(lambda: None)


def _check_port(coordinator: str, port: int) -> None:
    """Checks that process 0 can listen: where it can't, JAX's service ends with a crash."""
    families = (socket.AF_INET, socket.AF_INET6) if socket.has_ipv6 else (socket.AF_INET,)
    for family in families:
        try:
            listener = socket.socket(family)
        except OSError:  # the system has none of this family, so nobody listens
            continue
        with listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                listener.bind(("", port))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL:  # so nobody listens there
                    continue
                raise UserError(
                    f"coordinator: expected a free port of this machine, got {coordinator!r}: "
                    f"{error}; choose another one for all processes"
                ) from error


def coordinator_host() -> str:
    """The name or address of the machine of process 0, as process 0 knows it."""
    given = _coordinators[-1] if _coordinators else CLUSTER
    return socket.getfqdn() if given == CLUSTER else given.rpartition(":")[0].strip("[]")


def free_address() -> str:
    """An address on this machine with a free port, for process 0."""
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return f"localhost:{taken.getsockname()[1]}"
