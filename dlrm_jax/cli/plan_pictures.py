"""Pictures of a plan: what the shards hold and read, and which device of a mesh holds what."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dlrm_jax.cli.pictures import COLOURS, COMPACT, INK, legend_beside, new_axes, new_grid
from dlrm_jax.embedding.layout import Layout
from dlrm_jax.embedding.plan import PLACEMENTS, Plan
from dlrm_jax.embedding.planning.balance import Balance, row_bytes
from dlrm_jax.embedding.planning.devices import Device

_GIB, _MIB = 2**30, 2**20
_COLOUR: dict[str, str] = dict(zip(PLACEMENTS, COLOURS, strict=False))
_GROUPS = 2  # of a mesh that are drawn; the others hold the same
_NARROWEST = 0.045  # part of a device's height that has room for a table's name


def draw_shards(found: Balance) -> Figure:
    """Bytes by placement and distinct rows, shard by shard."""
    figure, (above, below) = new_grid(4.4, 2, 1, ratios=(2, 1))
    below.sharex(above)
    shards = np.arange(len(found.reads))
    unit, size = ("GiB", _GIB) if found.device_bytes >= _GIB else ("MiB", _MIB)
    top = np.zeros(len(shards))
    for placement, nbytes in found.by_placement.items():
        if nbytes.any():
            above.bar(
                shards, nbytes / size, 0.7, top, color=_COLOUR[placement], label=_words(placement)
            )
            top += nbytes / size
    if found.padding.any():
        above.bar(shards, found.padding / size, 0.7, top, color="#dddddd", label="padding")
    above.set_ylabel(f"stored, {unit}")
    above.tick_params(axis="x", length=0, labelbottom=False)
    legend_beside(above)
    below.bar(shards, found.reads, 0.7, color="#777777")
    below.axhline(found.reads.mean(), color=INK, linewidth=0.8, linestyle=":", label="mean")
    legend_beside(below)
    below.yaxis.set_major_formatter(COMPACT)
    below.set_ylabel("distinct rows\nlooked up")
    below.set_xlabel("shard")
    if len(shards) <= 32:
        below.set_xticks(shards)
    return figure


def draw_mesh(layout: Layout, plan: Plan, groups: int, device: Device) -> Figure:
    """Draws the tables of every device: data-parallel groups below each other, shards side by side.

    In a device, the height of a table is its share of what the fullest device holds. The first two
    of more data-parallel groups are drawn.

    Args:
        layout: layout of the plan.
        plan: plan of all tables.
        groups: number of data-parallel groups.
        device: model of every device.
    """
    drawn = min(groups, _GROUPS)
    figure, axes = new_axes(0.8 + 2.4 * drawn)
    stored = [dict(_stored(layout, plan, shard, device)) for shard in range(plan.shards)]
    fullest = max(sum(nbytes for _, nbytes in own.values()) for own in stored)
    for group in range(drawn):
        for shard, own in enumerate(stored):
            _draw_device(axes, shard, -group, own, fullest)
    for placement in PLACEMENTS:
        if any(kind == placement for own in stored for kind, _ in own.values()):
            axes.bar(0, 0, color=_COLOUR[placement], label=_words(placement))
    legend_beside(axes)
    axes.set_xlim(-0.5, plan.shards - 0.5)
    axes.set_ylim(-drawn + 0.48, 0.52)
    axes.xaxis.tick_top()
    axes.set_xticks(range(plan.shards), [f"shard {shard}" for shard in range(plan.shards)])
    axes.set_yticks([-group for group in range(drawn)], [f"data\ngroup {i}" for i in range(drawn)])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if groups > drawn:
        axes.set_xlabel(f"and {groups - drawn} more data-parallel groups, which hold the same")
    return figure


def _stored(
    layout: Layout, plan: Plan, shard: int, device: Device
) -> Iterator[tuple[str, tuple[str, float]]]:
    """Placement, and bytes with optimizer state, of each table on a shard."""
    for slab in layout.slabs:
        for piece, _ in slab.pieces:
            if piece.shard in (shard, None):
                rows = piece.rows(slab.tables[piece.table].rows)
                rows /= slab.shards if slab.fully_sharded else 1
                nbytes = rows * sum(row_bytes(slab, device))
                yield piece.table, (plan.placement(piece.table), nbytes)


def _draw_device(
    axes: Axes, x: float, y: float, stored: dict[str, tuple[str, float]], fullest: float
) -> None:
    """A box with the tables that a device holds, the largest below."""
    left, bottom, width, height = x - 0.46, y - 0.46, 0.92, 0.92
    for table, (placement, nbytes) in sorted(stored.items(), key=lambda item: -item[1][1]):
        extent = height * nbytes / fullest
        axes.add_patch(
            Rectangle((left, bottom), width, extent, color=_COLOUR[placement], alpha=0.75, lw=0)
        )
        if extent > _NARROWEST:
            axes.plot([left, left + width], [bottom + extent] * 2, color="white", linewidth=1)
            axes.text(x, bottom + extent / 2, table, ha="center", va="center", size=8,
                      parse_math=False)  # fmt: skip
        bottom += extent
    box = Rectangle((left, y - 0.46), width, height, fill=False, edgecolor=INK, lw=0.8)
    axes.add_patch(box)


def _words(placement: str) -> str:
    return placement.replace("_", "-")
