"""The choice between kernels and XLA's programs for lookups, updates and initial values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Shaped

from dlrm_jax.backend import Backend
from dlrm_jax.embedding import pooling
from dlrm_jax.embedding.initial_values import INITIAL_ROWS
from dlrm_jax.embedding.layout import Block, Layout
from dlrm_jax.embedding.optimizer import OPTIMIZERS
from dlrm_jax.embedding.packed_rows import LANES, columns
from dlrm_jax.embedding.row_optax import RowOptax
from dlrm_jax.embedding.row_optimizer import slot_shapes
from dlrm_jax.embedding.slab import Slab
from dlrm_jax.errors import UserError
from dlrm_jax.native import library, ops, threefry
from dlrm_jax.processes import check_same

# Bytes of the lines that `fused_update_tpu` has on a TPU's chip at a time, of 16 MiB that XLA gives
# a kernel. With more than 11 MiB, those of 1,920 numbers and Adam, it didn't compile.
_ON_CHIP = 2**23


def has_native_lookup(block: Block) -> bool:
    """Whether `native.ops.pool` is faster for this block.

    It sums long bags in registers and prefetches their rows. On two cores, predictions for
    2048 samples with 8 tables of 1M x 64 and 100 uniform ids a bag took 33 instead of 45 ms, for
    256 samples 5.2 instead of 7.7. With one id a bag `pooling.pool` is faster: predictions for 26
    such tables x 16 took 5.9 instead of 6.6 ms.
    """
    return block.column.shape[-1] > 1 and block.slab.dtype == np.float32


def has_pallas_lookup(block: Block, backend: Backend) -> bool:
    """Whether the backend's kernel is better for a block: for one id a bag, XLA's is a gather."""
    return block.column.shape[-1] > 1 and _has_pallas_rows(block.slab, backend)


def _has_pallas_rows(slab: Slab, backend: Backend) -> bool:
    """Whether the backend's kernels read and write the rows of a slab.

    Those of Mosaic do by whole lines of 32-bit numbers, see `packed_rows`.
    """
    if backend.row_kernels != "mosaic":
        return backend.row_kernels == "triton"
    kinds = (np.float32, np.float64) if backend.interprets_kernels else (np.float32,)
    return slab.dtype in kinds and (slab.packed or slab.width % LANES == 0)


def pool(
    block: Block,
    slab: Shaped[Array, "_ _"],
    rows: Int[Array, "N T L"],
    id_weights: Float[Array, "N T L"] | None,
    native: bool,
    backend: Backend,
) -> Float[Array, "N T d"]:
    """The best implementation of `pooling.pool` for a block.

    Args:
        block: block of the rows.
        slab: a slab on this device, in its storage dtype.
        rows: row numbers; R or more stands for "no row".
        id_weights: id weights of the rows; None for ones.
        native: whether native kernels may be used.
        backend: record of the devices.
    """
    if native and has_native_lookup(block):
        return ops.pool(slab, rows, id_weights)
    dtype, width = block.slab.dtype, block.slab.width
    if not has_pallas_lookup(block, backend):
        return pooling.pool(slab, rows, id_weights, dtype, width)
    if backend.row_kernels == "mosaic":
        from dlrm_jax.embedding import pooling_tpu  # Pallas takes a second to import

        return pooling_tpu.pool(slab, rows, id_weights, width, backend.interprets_kernels)
    from dlrm_jax.embedding import pooling_gpu

    return pooling_gpu.pool(slab, rows, id_weights, dtype, backend.interprets_kernels)


def has_native_update(slab: Slab) -> bool:
    """Whether `native.ops` has the update of this slab.

    For long bags it is far faster: it stores no gradient for each id and sums those of equal rows
    in registers. On two cores, with 8 tables of 1M x 64, batches of 2048
    and 100 uniform ids a bag, a step with native kernels took 101 instead of 190 ms for SGD, 117
    instead of 268 for row-wise Adagrad, of which the lookups are 11. With one id a bag the two
    updates are about equal.
    """
    optimizer = slab.optimizer
    if optimizer is None or slab.dtype != np.float32:
        return False
    return optimizer.native == "columns" or (optimizer.native == "rows" and slab.split != "columns")


def has_fused_update(slab: Slab, backend: Backend) -> bool:
    """Whether `fused_update_gpu` or `fused_update_tpu` has the update of this slab.

    XLA's program writes the gradient of each id to memory, their sums, and the touched rows; the
    kernels write rows alone. Owners of fully sharded rows give them what has come, in each round.
    Where columns are split, a row's state needs those of other devices. Random bits are those of
    XLA's program. Lines of more than 1,400 numbers with Adam are too large for a TPU's chip.
    """
    optimizer = slab.optimizer
    if optimizer is None or not optimizer.fusible or not _has_pallas_rows(slab, backend):
        return False
    if slab.split == "columns" or slab.rounds_randomly:
        return False
    if backend.row_kernels == "triton":
        return True
    slots = slot_shapes(optimizer, 1, slab.dim, slab.dtype).values()
    wide = 1 + sum(x.ndim == 2 for x in slots)
    numbers = (3 * wide + 2) * LANES * columns(slab.width)
    fits = numbers * slab.dtype.itemsize <= _ON_CHIP or backend.interprets_kernels
    return fits and all(x.dtype == slab.dtype for x in slots)


def has_native_initial_values(slab: Slab) -> bool:
    """Whether `native.ops` makes the initial values of this slab, to the same bits.

    Each device makes its own rows, on all cores and without a second copy. The 34M rows of Kaggle's
    tables took 0.8 instead of 3.5 s of processor time, besides the system's for their memory.
    It knows the default distribution alone, and JAX's default generator. Optimizers other than
    those that are known here may derive a state from whole rows, which not every device has.
    """
    return (
        slab.dtype == np.float32
        and not slab.packed
        and all(table.init is None for table in slab.tables.values())
        and type(slab.optimizer) in (type(None), RowOptax, *OPTIMIZERS.values())
        and threefry.is_default()
        and INITIAL_ROWS * slab.dim <= 2**32  # numbers of a key, which it counts in 32 bits
    )


def initial_values_in_use(layout: Layout, native: bool) -> str:
    """The implementation of initial values, as `kernels_in_use` has it of other things.

    Args:
        layout: layout of the tables.
        native: whether native kernels may be used.
    """
    used = [slab.name for slab in layout.slabs if native and has_native_initial_values(slab)]
    return _summary(layout.slabs, {"native": used})


def kernels_in_use(layout: Layout, native: bool, backend: Backend) -> dict[str, str]:
    """See `EmbeddingCollection.kernels_in_use`.

    Args:
        layout: layout of the tables.
        native: whether native kernels may be used.
        backend: record of the devices.
    """
    blocks, trained = layout.blocks, [slab for slab in layout.slabs if slab.optimizer]
    lookups = {
        "native": [b.slab.name for b in blocks if native and has_native_lookup(b)],
        backend.row_kernels: [b.slab.name for b in blocks if has_pallas_lookup(b, backend)],
    }
    updates = {
        "native": [slab.name for slab in trained if native and has_native_update(slab)],
        backend.row_kernels: [slab.name for slab in trained if has_fused_update(slab, backend)],
    }
    return {"lookups": _summary(layout.slabs, lookups), "updates": _summary(trained, updates)}


def check_demanded(kernels: str, used: Mapping[str, str]) -> None:
    """Checks that a native kernel is in use, if they are demanded.

    Args:
        kernels: ``"native"``, which demands them, or another choice.
        used: result of `kernels_in_use`, or more of that kind.

    Raises:
        UserError: everything runs in JAX.
    """
    if kernels == "native" and not any("native" in kind for kind in used.values()):
        found = ", ".join(f"{what} {kind}" for what, kind in used.items())
        raise UserError(
            f"kernels: native demands a native kernel for at least one of {', '.join(used)}, there "
            f"is none for these tables, optimizer and model: {found}. Lookups have one for float32 "
            f"tables with bags of several ids, updates for float32 tables with sgd or "
            f"rowwise_adagrad, models for DLRM's dot interaction, and MLPs in bfloat16 on some "
            f"processors; choose auto or jax, or one of these"
        )


def check_processes(mesh: Mesh, used: Mapping[str, str]) -> None:
    """Checks that all processes of a mesh run the same kernels; they compute it together.

    Each machine's cache decides what it has, and other kernels round otherwise: the copies of a
    table would drift apart. A mesh without some of the processes is not checked, as they might
    never come here.

    Args:
        mesh: mesh of the tables.
        used: result of `kernels_in_use`, or more of that kind.

    Raises:
        UserError: a process differs from process 0.
    """
    if len({device.process_index for device in mesh.devices.flat}) < jax.process_count():
        return
    values: dict[str, str | None] = {f"kernels of {what}": kind for what, kind in used.items()}
    if any("native" in kind for kind in used.values()):
        values["the library of native kernels"] = library.version()
    with jax.ensure_compile_time_eval():  # also where a user's jit makes the state
        check_same(
            values,
            "build them on all machines, or on none, or choose the kernels jax (--kernels=jax): "
            "copies of a table must get the same numbers",
        )


def _summary(slabs: Sequence[Slab], used: Mapping[str, Sequence[str]]) -> str:
    """The implementations of these slabs, by table if they differ.

    Args:
        slabs: slabs.
        used: names of slabs by their kind of kernels; JAX has the others.
    """
    tables: dict[str, list[str]] = {kind: [] for kind in (*used, "jax")}
    for slab in slabs:
        kind = next((kind for kind, names in used.items() if slab.name in names), "jax")
        tables[kind].extend(slab.tables)
    found = {kind: names for kind, names in tables.items() if names}
    if len(found) < 2:
        return next(iter(found), "none")
    return "; ".join(f"{kind} of {', '.join(names)}" for kind, names in found.items())
