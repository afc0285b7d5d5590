"""The arrays that a step makes of rows: an estimate of their bytes on a device.

A compiled program keeps few of them at a time, and which ones is XLA's choice. The estimate counts
what a device receives, and what the update of a slab makes of each id: its row number and places of
equal ones and, if bags have several ids, a gradient. If an update changes all rows, it makes arrays
as large as a slab instead. On GPUs and TPUs, sums in the order of rows need other arrays of
gradients than those of a CPU, and kernels that update rows need none but what owners of fully
sharded rows receive. ``python -m dlrm_jax compile`` prints the estimate beside the bytes of the
compiled program.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dlrm_jax.backend import GPU, TPU
from dlrm_jax.embedding.collectives import Collective
from dlrm_jax.embedding.kernel_dispatch import has_fused_update
from dlrm_jax.embedding.layout import Layout
from dlrm_jax.embedding.planning import tpu_layout
from dlrm_jax.embedding.planning.devices import Device
from dlrm_jax.embedding.row_gradients import Reduction, reduction
from dlrm_jax.embedding.row_optimizer import slot_bytes
from dlrm_jax.embedding.slab import Slab
from dlrm_jax.mesh import DATA, MODEL

# Fitted to programs of `mlperf_v2` on 16x8, 4x32, 1x8 and 8x1 and of `terabyte` on 2x4: numbers of
# 4 bytes for each id, and arrays of gradients that live at a time.
_NUMBERS = 4
_GRADIENTS = 1.15
# Arrays of gradients of ids of a GPU: of fully sharded slabs, which kernels or XLA update, and of
# others that XLA updates; and of a TPU, in tiles, of fully sharded slabs that kernels update, and
# of what XLA updates. Fitted to programs of docs/results/targets, so that none needs more.
_SENT_ON_GPU, _SENT_BY_XLA, _ON_GPU = 3.0, 3.5, 2.0
_SENT_ON_TPU, _ON_TPU = 2.0, 2.25
# Arrays of all rows from which new values are rounded at random, fitted to programs of three
# optimizers.
_ROUNDING = 3.5


def temporaries(
    layout: Layout,
    moved: Sequence[Collective],
    mesh_shape: Mapping[str, int],
    batch_size: int,
    device: Device,
    all_rows: bool = False,
    fused: bool = True,
) -> float:
    """The bytes that lookups and updates make on a device, besides tables and optimizer state.

    Args:
        layout: layout of the tables.
        moved: collectives of the tables in a step.
        mesh_shape: sizes of the mesh's axes, by name.
        batch_size: samples of a batch, over all devices.
        device: kind of all devices. On a TPU, a narrow table of few rows may be copied.
        all_rows: whether an update changes all rows, see `Workload`.
        fused: whether kernels of accelerators update rows, see `Workload`.
    """
    groups, devices = mesh_shape[DATA], math.prod(mesh_shape[axis] for axis in (DATA, MODEL))
    nbytes, copied = float(sum(each.nbytes for each in moved)), 0
    for slab in layout.slabs:
        blocks = [block for block in layout.blocks if block.slab is slab]
        samples = batch_size // (devices if slab.fully_sharded else groups)
        ids = samples * sum(block.bag.shape[1] * block.length for block in blocks)
        width = tpu_layout.copied_width(slab.width, slab.rows, ids) if device.tiled else 0
        copied = max(copied, slab.rows * width * slab.dtype.itemsize)
    nbytes += copied
    for slab in layout.slabs:
        if slab.optimizer is None:
            continue
        blocks = [block for block in layout.blocks if block.slab is slab]
        ids = sum(block.bag.shape[1] * block.length for block in blocks)
        bags = sum(block.bag.shape[1] for block in blocks)
        copies = 1 if slab.fully_sharded else groups if slab.sharded else devices
        samples = batch_size // devices if slab.fully_sharded else batch_size
        way = reduction(
            slab.rows, slab.width, samples * ids, samples * bags, copies, slab.needs_sums(False)
        )
        if way.exchanged:
            samples //= copies
        vector = slab.width * slab.vector_dtype.itemsize
        nbytes += _NUMBERS * 4 * samples * ids
        if all_rows:
            continue
        if not device.emulated:
            nbytes += _arrays_on(device, slab, way, fused) * samples * ids
            nbytes += slab.rows * vector if way.exchanged else 0
        elif way.dense:
            nbytes += slab.rows * vector
        else:
            several = sum(b.bag.shape[1] * b.length for b in blocks if b.length > 1)
            nbytes += _GRADIENTS * samples * several * vector
    trained = [slab for slab in layout.slabs if slab.optimizer]
    return nbytes + _of_all_rows(trained) if all_rows else nbytes


def _arrays_on(device: Device, slab: Slab, way: Reduction, fused: bool) -> float:
    """The bytes of gradients for each id on a GPU or TPU."""
    backend = TPU if device.tiled else GPU
    by_kernels = fused and has_fused_update(slab, backend) and not way.exchanged
    if by_kernels and not slab.fully_sharded:
        return 0.0
    if device.tiled:
        columns = -(-slab.width // tpu_layout.LANES) * tpu_layout.LANES
        arrays = _SENT_ON_TPU if by_kernels else _ON_TPU
    else:
        columns = slab.width
        sent = _SENT_ON_GPU if by_kernels else _SENT_BY_XLA
        arrays = sent if slab.fully_sharded else _ON_GPU
    return arrays * columns * slab.vector_dtype.itemsize


def _of_all_rows(slabs: Sequence[Slab]) -> float:
    """The bytes of an update of all rows: gradients of all slabs, and most of one slab's rest."""
    gradients, rest = 0.0, 0.0
    for slab in slabs:
        assert slab.optimizer is not None
        vector = slab.width * slab.vector_dtype.itemsize
        # New optimizer state: rows are updated where they are.
        own = sum(slot_bytes(slab.optimizer, slab.width, slab.dtype).values())
        own += slab.rounds_randomly * _ROUNDING * vector
        row = vector + 4  # gradient and row number
        if slab.fully_sharded:  # whose gradients come while it is updated
            own, row = own + row + vector, 0
        gradients += row * slab.rows
        rest = max(rest, own * slab.rows)
    return gradients + rest
