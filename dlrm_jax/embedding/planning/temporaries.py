"""The arrays that a step makes of rows: an estimate of their bytes on a device.

A compiled program keeps few of them at a time, and which ones is XLA's choice. The estimate counts
what a device receives, and what the update of a slab makes of each id: its row number and places of
equal ones and, if bags have several ids, a gradient. ``python -m dlrm_jax compile`` prints it
beside the bytes of the compiled program.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dlrm_jax.embedding.collectives import Collective
from dlrm_jax.embedding.layout import Layout
from dlrm_jax.embedding.row_gradients import reduction
from dlrm_jax.mesh import DATA, MODEL

# Fitted to programs of `mlperf_v2` on 16x8, 4x32, 1x8 and 8x1 and of `terabyte` on 2x4: numbers of
# 4 bytes for each id, and arrays of gradients that live at a time.
_NUMBERS = 4
_GRADIENTS = 1.15


def temporaries(
    layout: Layout, moved: Sequence[Collective], mesh_shape: Mapping[str, int], batch_size: int
) -> float:
    """The bytes that lookups and updates make on a device, besides tables and optimizer state.

    Args:
        layout: layout of the tables.
        moved: collectives of the tables in a step.
        mesh_shape: sizes of the mesh's axes, by name.
        batch_size: samples of a batch, over all devices.
    """
    groups, devices = mesh_shape[DATA], math.prod(mesh_shape[axis] for axis in (DATA, MODEL))
    nbytes = float(sum(each.nbytes for each in moved))
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
        if way.dense:
            nbytes += slab.rows * vector
        else:
            several = sum(b.bag.shape[1] * b.length for b in blocks if b.length > 1)
            nbytes += _GRADIENTS * samples * several * vector
    return nbytes
