"""Curves of simulated steps over the number of devices, each with a placement of all tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from dlrm_jax.cli.pictures import COLOURS, legend_above, new_grid
from dlrm_jax.config import Config
from dlrm_jax.embedding import automatic_plan
from dlrm_jax.embedding.planning.devices import Device
from dlrm_jax.simulation.schedule import seconds_of
from dlrm_jax.simulation.step import Options, simulate
from dlrm_jax.training.build import workload
from dlrm_jax.training.tables import Descriptions, describe

DEVICE_COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024)


class Curve(NamedTuple):
    """A way to place all tables.

    Attributes:
        placement: placement of all tables.
        by_host: whether groups are hosts; else the mesh is one group.
    """

    placement: str
    by_host: bool

    @property
    def name(self) -> str:
        """The placement and the mesh."""
        return f"{self.placement}, {'DxM' if self.by_host else '1xN'}"


CURVES = (
    Curve("fully_sharded", True),
    Curve("row_wise", True),
    Curve("row_wise", False),
    Curve("table_wise", False),
    Curve("column_wise", False),
)


def step_ms(curve: Curve, config: Config, devices: int, kind: Device) -> float | None:
    """The milliseconds of a simulated step; None if tables or batch can't be split so.

    Args:
        curve: placement of all tables, and the mesh.
        config: config with the batch.
        devices: number of devices.
        kind: model of every device.
    """
    groups = max(1, devices // kind.devices_per_host) if curve.by_host else 1
    shards = devices // groups
    if config.batch_size % devices:
        return None
    described = describe(config)
    if curve.placement == "column_wise" and any(x.dim % shards for x in described.tables):
        return None
    plan = automatic_plan(
        described.tables,
        shards,
        _placements(curve.placement, described, shards),
        optimizer=described.optimizer,
        workload=workload(config, described, groups),
        device=kind,
    )
    return 1e3 * seconds_of(simulate(config, described, plan, groups, kind, Options()))


def _placements(placement: str, described: Descriptions, shards: int) -> dict[str, str]:
    """The placement of all tables; whole ones are dealt out."""
    names = [table.name for table in described.tables]
    if placement == "table_wise":
        return {name: f"table_wise:{i % shards}" for i, name in enumerate(names)}
    return dict.fromkeys(names, placement)


def draw(
    weak: Sequence[Sequence[float | None]], strong: Sequence[Sequence[float | None]]
) -> Figure:
    """Draws milliseconds of each curve over `DEVICE_COUNTS`, weak scaling beside strong scaling.

    Curves without a time are left out.
    """
    figure, both = new_grid(4.2, 1, 2)
    both[1].sharey(both[0])
    for axes, found in zip(both, (weak, strong), strict=True):
        for curve, colour, times in zip(CURVES, COLOURS, found, strict=True):
            points = [(n, x) for n, x in zip(DEVICE_COUNTS, times, strict=True) if x is not None]
            if points:
                axes.plot(
                    *zip(*points, strict=True), "o-", color=colour, markersize=3, label=curve.name
                )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(DEVICE_COUNTS, [f"{n:,}" for n in DEVICE_COUNTS])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    both[0].set_xlabel("devices, with equally many samples each")
    both[1].set_xlabel("devices that share a batch")
    both[0].set_ylabel("step, ms")
    legend_above(figure, both[0])
    return figure
