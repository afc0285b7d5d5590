"""The preferences of a backend: one record for a mesh, which the rest of the code asks."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, Literal

import jax
from jax.sharding import Mesh

from dlrm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Backend:
    """Choices that depend on the devices alone. The defaults are those of accelerators.

    Attributes:
        platform: name that JAX has for it: cpu, gpu or tpu.
        emulated: whether one CPU plays the part of several devices.
        dense_chunk: samples that a device's dense model is trained on at a time; None for all of
            its own. The activations of more samples fall out of a CPU's caches, the products of
            fewer are less efficient. On two cores, in chunks of 1024 the step of the Kaggle preset
            took 1 % longer at 8192 samples, that of `profile` 11 % at 2048.
        native_chunk: the same for a model whose layers are all native: they work through samples in
            blocks of their own, and in few calls. On two cores, in chunks of 512 the step of the
            Kaggle preset in bfloat16 took 2 to 15 % longer at 2048 samples, up to 15 % at 8192, and
            that of `profile` 7 % at 2048; in chunks of 4096 12 % longer at 8192.
        prediction_chunk: the same for predictions, which keep no activations for a way back.
        flat_all_reduce: whether small gradients of the dense model are added up as one array.
            Emulated devices add one array of 476k numbers in 1.0 ms, but in 3.0 to 4.4 as a tuple
            of the parameters' shapes. Accelerators' collectives are combined by XLA itself, as
            soon as they may begin and without a copy.
        weight_first: whether a step sums the weights of its samples over the devices before the
            model. Otherwise the sum is known with that of the dense gradients, for which the update
            of the tables waits. Emulated devices compute nothing meanwhile, and wait for each other
            once more.
        unroll_micro_batches: whether the loop over micro-batches is unrolled. XLA aborts now and
            then when emulated devices repeat a collective in a loop.
        programs_ahead: programs to start before the results of the first are read. A device then
            goes from one to the next without waiting for the host; not many, because the batches
            of all are in memory. None on emulated devices, where two programs at once can hang,
            see `mesh.emulate_devices`.
        native_kernels: whether `dlrm_jax.native` has kernels for it, if they are built.
        host_memory: whether all devices share the memory of the machine.
        widens_short_floats: whether XLA makes a float32 copy of a whole array of shorter floats
            to compute with it.
        row_sums: way to sum the gradients of equal rows. A CPU adds each to its place, which it
            finds by a hash scratch and a loop; it sorts slowly. Accelerators sort ids by row and
            sum those of a row in a fixed order. There, additions to one place are atomic on GPUs,
            in another order each time, or one after the other; a loop waits for the host. XLA sorts
            the places of each scatter on TPUs, unless they are known to ascend: there, sums are
            compacted so that they do. Compiling a sort for a TPU takes seconds.
        attention: compiler of HSTU's attention: XLA, Mosaic, Triton or native. Mosaic and Triton
            compile kernels of Pallas, which keep the scores of a pair of blocks within the chip.
            XLA's program of this is a loop that writes them to memory, and on a GPU each of its
            turns launches kernels and waits for the host; neither has been timed. Native kernels
            of `dlrm_jax.native`, if they are built, keep the scores in a CPU's caches, too, and
            stop at the diagonal.
        row_kernels: compiler of the lookups of bags of several ids, and of the updates of rows.
            XLA's lookup is a loop that adds the vectors of one id of all bags in a turn, so the
            sums pass through memory once for each id of a bag, and on a GPU each turn launches
            kernels. Its update writes the gradient of each id to memory. Triton and Mosaic compile
            kernels of Pallas that keep both within the chip; neither has been timed.
        packed_from: least numbers of a row with which rows that don't fill lines of 128 are packed,
            see `embedding.packed_rows`; None to pack none. XLA for TPUs reads rows of up to 48
            numbers without a copy of the table, and cutting them out of lines would need more
            cycles than it saves, as libtpu 0.0.41 counted them for eight TPUs v5e: with all rows
            packed, a step of the Kaggle preset had 5.2 instead of 3.4 million. With none, that of
            `terabyte` had 36 instead of 6.8.
    """

    platform: str
    emulated: bool = False
    dense_chunk: int | None = None
    native_chunk: int | None = None
    prediction_chunk: int | None = None
    flat_all_reduce: bool = False
    weight_first: bool = True
    unroll_micro_batches: bool = False
    programs_ahead: int = 2
    native_kernels: bool = False
    host_memory: bool = False
    widens_short_floats: bool = False
    row_sums: Literal["scatter", "sorted", "compacted"] = "sorted"
    attention: Literal["xla", "mosaic", "triton", "native"] = "xla"
    row_kernels: Literal["xla", "triton", "mosaic"] = "xla"
    packed_from: int | None = None

    @property
    def interprets_kernels(self) -> bool:
        """Whether kernels of Pallas, if they are asked for, run in its interpreter."""
        return not is_accelerator(self.platform)


CPU = Backend(
    "cpu",
    dense_chunk=512,
    native_chunk=2048,
    prediction_chunk=2048,
    flat_all_reduce=True,
    weight_first=False,
    unroll_micro_batches=True,
    native_kernels=True,
    attention="native",
    host_memory=True,
    widens_short_floats=True,
    row_sums="scatter",
)
GPU = Backend("gpu", attention="triton", row_kernels="triton")
TPU = Backend("tpu", attention="mosaic", row_kernels="mosaic", row_sums="compacted", packed_from=49)


def is_accelerator(platform: str) -> bool:
    """Whether devices of a platform are GPUs or TPUs, beside which JAX has CPU devices, too."""
    return platform != CPU.platform


def backend_named(platform: str) -> Backend:
    """The record of a platform whose devices, if they are CPUs, aren't emulated."""
    return next((x for x in (CPU, GPU, TPU) if x.platform == platform), Backend(platform))


def backend_of(mesh: Mesh) -> Backend:
    """The record of a mesh's devices, which are all of one kind."""
    platform = mesh.devices.flat[0].platform
    if is_accelerator(platform):
        return backend_named(platform)
    emulated = mesh.size > 1
    return dataclasses.replace(
        CPU, emulated=emulated, programs_ahead=0 if emulated else CPU.programs_ahead
    )


def devices(platform: str | None = None) -> list[Any]:
    """JAX's devices: of a platform, or of its default backend.

    Raises:
        UserError: there are none, such as those that ``$JAX_PLATFORMS`` asks for.
    """
    try:
        return jax.devices(platform)
    except (RuntimeError, AssertionError) as error:  # the latter has no words
        if jax.distributed.is_initialized() and isinstance(error, RuntimeError):
            raise  # another process may be lost
        asked = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        setting = f"JAX_PLATFORMS={asked}" if asked else "JAX_PLATFORMS unset"
        found = str(error) or "none of them"
        raise UserError(
            f"expected {platform or 'some'} devices of JAX, with {setting}; found {found}. Unset "
            f"JAX_PLATFORMS, or name in it what there is, such as cpu; BUILD.md says how to "
            f"install JAX for a GPU or TPU"
        ) from error


def xla_flags() -> str:
    """The flags of ``$XLA_FLAGS``, or of the file that it names.

    It names one if it doesn't begin with a dash, see ``tsl::ParseFlagsFromEnv`` of XLA.

    Raises:
        UserError: there is no such file, or it has no text.
    """
    text = os.environ.get("XLA_FLAGS", "")
    if not text.strip() or text.lstrip().startswith("-"):
        return text
    try:
        flags = Path(text).read_text(encoding="utf-8")
        if "\0" in flags:
            raise ValueError("it has a NUL")
    except (OSError, ValueError) as error:
        raise UserError(
            f"XLA_FLAGS: expected flags that begin with --, or a text file of such flags, got "
            f"{text!r}: {error}"
        ) from error
    return flags


def describe_devices(mesh: Mesh) -> str:
    """The devices of a mesh in words, which say so if they are emulated."""
    emulated = ", emulated" if backend_of(mesh).emulated else ""
    count = len({device.process_index for device in mesh.devices.flat})
    processes = f", in {count} processes" if count > 1 else ""
    return f"{mesh.size} x {mesh.devices.flat[0].device_kind}{emulated}{processes}"
