"""One run in several processes: joined at the start, agreed on what one of them has seen.

Each process has some of the mesh's devices and runs the same program on its own part of every
batch. What they do with arrays on the mesh they do together and in the same order; a process that
left out one of these would make the others wait. So whatever one process alone can know (a signal,
what lies on a disk) is agreed on here first.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dlrm_jax.errors import UserError

CLUSTER = "cluster"
"""The coordinator's address, where it is for JAX to find out from the cluster."""

# A process that hasn't been heard of for so long is dead, and ends the others.
_HEARTBEAT_SECONDS = 25
# How long to wait for the others at the start, when they may still be scheduled, and at the end.
_START_SECONDS = 300
_END_SECONDS = 60

_BLOCK = 1024  # bytes

# Errors that are raised as such in all processes.
_SHARED = {"UserError": UserError, "OSError": OSError}


def join(coordinator: str, count: int, index: int | None) -> None:
    """Joins the other processes of a run; call before JAX is used for the first time.

    From then on a process that dies ends the others: those that compute together with it notice
    that it is gone, all others miss its heartbeat.

    Args:
        coordinator: ``HOST:PORT`` of process 0, which must be reached from all; or `CLUSTER`,
            where Slurm, Kubernetes, Open MPI or Cloud TPU has started the processes.
        count: how many there are.
        index: which one this is, from 0; None for `CLUSTER`.

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
        raise UserError(f"of {count} processes, expected one from 0 to {count - 1}, got {index}")
    host, _, port = coordinator.rpartition(":")
    # With another one, JAX would wait for the others in vain.
    if not automatic and not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(
            f"coordinator: expected HOST:PORT, with a port from 1 to 65535, or {CLUSTER}, got "
            f"{coordinator!r}"
        )
    # It would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            None if automatic else coordinator,
            count,
            index,
            # In a cluster, too, what is given is meant: not one device for each process.
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


def free_address() -> str:
    """An address on this machine that process 0 can take."""
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return f"localhost:{taken.getsockname()[1]}"


def is_distributed() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized()


def is_process_0() -> bool:
    """Whether this is the process that writes what there is one of: logs, metadata, results."""
    return jax.process_index() == 0


def on_process_0(action: Callable[[], Any]) -> Any:
    """Does something in process 0 while the others wait.

    For what lies on a disk: another machine may see it later than this one, or not at all.

    Args:
        action: returns something that JSON can hold.

    Returns:
        what it returned, in all processes.

    Raises:
        UserError, OSError: what it raised, in all processes.
        RuntimeError: it raised something else; in process 0 that itself.
    """
    if not is_distributed():
        return action()
    answer, failure = {}, None
    if is_process_0():
        try:
            answer = {"result": action()}
        except Exception as error:  # raised below, when the others know
            failure = error
            kind = next((k for k, cls in _SHARED.items() if isinstance(error, cls)), None)
            answer = {"error": kind, "arguments": error.args if kind else [repr(error)]}
    answer = json.loads(_broadcast(json.dumps(answer).encode()))
    if failure is not None:
        raise failure
    if "error" in answer:
        raise _SHARED.get(answer["error"], RuntimeError)(*answer["arguments"])
    return answer["result"]


def check_same(values: Mapping[str, Any]) -> None:
    """All processes must have been given the same.

    Args:
        values: by name; what JSON can hold.

    Raises:
        UserError: naming the first difference, in each process that has another value than
            process 0.
    """
    if not is_distributed():
        return
    expected = on_process_0(lambda: dict(values))
    for name, value in json.loads(json.dumps(values)).items():
        if value != expected[name]:
            raise UserError(
                f"{name} is {value} in process {jax.process_index()} and {expected[name]} in "
                f"process 0; give all of them the same flags and data"
            )


def _broadcast(content: bytes) -> bytes:
    """What process 0 has. Goes over the devices, in blocks so that few sizes are compiled."""
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(content), np.int32)))
    padded = np.zeros(-(-size // _BLOCK) * _BLOCK, np.uint8)
    if is_process_0():
        padded[:size] = np.frombuffer(content, np.uint8)
    return multihost_utils.broadcast_one_to_all(padded)[:size].tobytes()


class Agreement:
    """A number that each process knows for itself, agreed on as the largest.

    Takes one exchange of a few bytes over one device of each process, half a millisecond between
    processes of one machine; nothing in a single process.

    Args:
        mesh: of all processes' devices.
    """

    def __init__(self, mesh: Mesh):
        if is_distributed():
            ours = {device.process_index: device for device in mesh.devices.flat}
            one_each = Mesh(np.array([ours[i] for i in sorted(ours)]), ("processes",))
            self._split = NamedSharding(one_each, PartitionSpec("processes"))
            everywhere = NamedSharding(one_each, PartitionSpec())
            self._largest = jax.jit(lambda x: x.max(), out_shardings=everywhere)

    def __call__(self, value: int) -> int:
        """The largest of the values that the processes call this with."""
        if not is_distributed():
            return value
        given = jax.make_array_from_process_local_data(self._split, np.array([value], np.int32))
        return int(self._largest(given))
