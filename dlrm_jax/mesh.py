"""The device mesh: batches split over both axes, tables over ``model``, copied over ``data``."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dlrm_jax.backend import CPU, devices, is_accelerator, xla_flags
from dlrm_jax.errors import UserError

DATA = "data"
MODEL = "model"

BATCH = PartitionSpec((DATA, MODEL))
"""The split of a batch's first axis: over all devices."""

MOST_DEVICES = 4096
"""Devices of the largest mesh that is planned or emulated: more take minutes."""

_COUNT = "xla_force_host_platform_device_count"
_SCHEDULER = "xla_cpu_enable_concurrency_optimized_scheduler"


def parse_mesh(text: str, name: str = "--mesh") -> tuple[int, int]:
    """Reads ``"2x4"`` as 2 data-parallel groups of 4 model shards.

    Args:
        text: a mesh's shape.
        name: name of the flag or argument, for messages.

    Raises:
        UserError: the text is not two positive numbers joined by an x.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text)
    if match is None:
        raise UserError(
            f"{name}: expected DxM, D data-parallel groups of M model shards such as 2x4, "
            f"got {text!r}"
        )
    return int(match[1]), int(match[2])


def check_device_count(count: int, what: str) -> None:
    """Checks that a mesh isn't too large to be planned or emulated.

    Args:
        count: number of devices.
        what: description of them, for the message.

    Raises:
        UserError: they are more than `MOST_DEVICES`.
    """
    if count > MOST_DEVICES:
        raise UserError(
            f"expected at most {MOST_DEVICES:,} {what}, got {count:,}; choose a smaller mesh"
        )


def emulate_devices(count: int, processes: int = 1) -> None:
    """Asks for ``count`` CPU devices or more; call before JAX is used for the first time.

    Of several calls, the largest count holds. Accelerators stay there, and `make_mesh` prefers them
    where there are enough. What ``XLA_FLAGS`` says of the number of devices and of the order of
    collectives is left alone. If it names a file of flags, it gets the file's text, and what is
    added.

    Args:
        count: number of devices of all processes.
        processes: each of which gets as many of them.

    Raises:
        UserError: they are more than `MOST_DEVICES`, or can't be shared out evenly; or JAX has been
            used already, and there are fewer devices; or ``XLA_FLAGS`` names no file.
    """
    check_device_count(count, "emulated devices")
    if count % processes:
        raise UserError(
            f"{count} devices can't be shared out evenly among {processes} processes; choose a "
            f"multiple"
        )
    flags = xla_flags()
    if _COUNT not in flags:
        try:
            asked: int = jax.config.jax_num_cpu_devices  # pyright: ignore[reportAttributeAccessIssue]
            jax.config.update("jax_num_cpu_devices", max(count // processes, asked))
        except RuntimeError as error:  # JAX has been used
            if max(len(devices()), len(devices("cpu"))) >= count:
                return
            raise UserError(
                f"emulate_devices({count}) comes too late: JAX has been used already, with "
                f"{len(devices())} of {devices()[0].platform}; call it before anything "
                f"makes an array or asks for devices, in a notebook after a restart of the kernel"
            ) from error
    if count == 1:
        return
    # Two programs with collectives in flight at once on emulated devices can hang, or corrupt
    # the heap (seen with jaxlib 0.10.1 and 0.12.0 when more devices than cores are emulated).
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    # So can one program whose collectives don't depend on each other: each device starts them
    # in an order of its own (0 of 6 runs of `experiments.two_tower` on 2x4 came to an end). In
    # one order a DLRM step on 2x4 is as fast, or faster.
    if _SCHEDULER not in flags:
        # First, as XLA reads flags up to a word that is none. What a file says takes its place.
        os.environ["XLA_FLAGS"] = f"--{_SCHEDULER}=false {flags}".strip()


def make_mesh(shape: str | tuple[int, int]) -> Mesh:
    """A mesh of axes ``data`` and ``model`` on the first devices that are enough.

    Takes the default backend's devices (accelerators, where there are any), and CPU devices
    instead of accelerators only if `emulate_devices` was asked for as many. Several processes must
    all have devices in it. It takes those of process 0 first, one data-parallel group after the
    other, so that the shards of a group lie in one process if it has as many devices or a multiple,
    and the exchange of vectors stays there.

    Args:
        shape: ``"2x4"`` or ``(2, 4)``.

    Raises:
        UserError: neither backend has as many devices, or several processes have more, or JAX has
            none at all.
    """
    shape = parse_mesh(shape) if isinstance(shape, str) else shape
    count = shape[0] * shape[1]
    found = devices()
    if len(found) < count and is_accelerator(found[0].platform):
        found = devices(CPU.platform)
    if len(found) < count:
        raise _too_few(shape)
    if found[0].platform != devices()[0].platform:
        # What isn't placed explicitly must not wander to the accelerator.
        jax.config.update("jax_default_device", found[0])
    processes = len({device.process_index for device in found})
    if processes > 1 and len(found) != count:
        raise UserError(
            f"mesh {shape[0]}x{shape[1]} has {count} devices, the {processes} processes have "
            f"{len(found)} of {found[0].platform}; expected a mesh of all of them"
        )
    # In the order of processes: each then has consecutive samples of a batch.
    found = sorted(found, key=lambda device: (device.process_index, device.id))
    return mesh_of(found[:count], shape)


def mesh_of(devices: Sequence[Any], shape: tuple[int, int]) -> Mesh:
    """The mesh of some devices: data-parallel groups × model shards."""
    grid = np.array(devices).reshape(shape)
    return Mesh(grid, (DATA, MODEL), axis_types=(AxisType.Auto, AxisType.Auto))


def host_mesh() -> Mesh:
    """A mesh of one CPU device of this process: for arrays that are only read.

    Raises:
        UserError: JAX was told to have no CPU devices.
    """
    try:
        device = jax.local_devices(backend=CPU.platform)[0]
    except (RuntimeError, AssertionError) as error:  # the latter has no words
        devices()  # raises if none of those that are asked for are there
        raise UserError(
            f"expected a CPU device of JAX beside its accelerators: {error}; add cpu to "
            f"JAX_PLATFORMS, such as cuda,cpu, or leave it unset"
        ) from error
    return mesh_of([device], (1, 1))


def as_mesh(mesh: Mesh | str) -> Mesh:
    """A mesh, or the one that `make_mesh` makes of its shape.

    Raises:
        UserError: it is neither, or there are too few devices.
    """
    if isinstance(mesh, str):
        return make_mesh(parse_mesh(mesh, "mesh"))
    if not isinstance(mesh, Mesh):
        raise UserError(
            f"mesh: expected a jax.sharding.Mesh or a shape such as '2x4', got {mesh!r}"
        )
    return mesh


def check_accelerators(shape: tuple[int, int]) -> None:
    """Accelerators, where there are any, must be enough for a mesh.

    Raises:
        UserError: there are fewer; it says how to ask for emulated devices.
    """
    found = devices()
    if is_accelerator(found[0].platform) and len(found) < shape[0] * shape[1]:
        raise _too_few(shape)


def _too_few(shape: tuple[int, int]) -> UserError:
    count, found = shape[0] * shape[1], devices()
    if _COUNT in xla_flags() and not is_accelerator(found[0].platform):
        return UserError(
            f"mesh {shape[0]}x{shape[1]} needs {count} devices, but XLA_FLAGS asks for "
            f"{len(found)} of {found[0].platform}: set its --{_COUNT} to {count} or leave it out, "
            f"or choose a smaller mesh"
        )
    return UserError(
        f"mesh {shape[0]}x{shape[1]} needs {count} devices, but there are {len(found)} of "
        f"{found[0].platform}; choose a smaller mesh, or ask for emulated devices: --emulate of "
        f"the commands, emulate=True of dlrm_jax.fit, emulate_devices({count}) before JAX is first "
        f"used, or "
        f"XLA_FLAGS=--{_COUNT}={count}"
    )


def check_batch_size(mesh: Mesh, name: str, size: int, micro_batches: int = 1) -> None:
    """Every device must get as many samples of a batch, and of each of its micro-batches.

    Raises:
        UserError: naming the size and the mesh.
    """
    if size % (micro_batches * mesh.size):
        shape = "x".join(str(n) for n in mesh.devices.shape)
        raise UserError(
            f"{name}: {size} samples can't be split evenly over the {mesh.size} devices of mesh "
            f"{shape}{in_micro_batches(micro_batches)}"
        )


def in_micro_batches(count: int) -> str:
    """The end of a message on the size of a batch."""
    return f", in {count} micro-batches" if count > 1 else ""


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """The sharding of a batch's arrays, after ``leading`` axes that aren't split."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, *BATCH))


def put_batch(mesh: Mesh, batch: Any) -> Any:
    """Places a batch: a pytree of arrays, consecutive samples of which are this process's."""
    return jax.make_array_from_process_local_data(batch_sharding(mesh), batch)


def put_whole(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Places an array that every process has, or can read, as a whole; a device takes its part."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
