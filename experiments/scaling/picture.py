"""Draws the excess of normalized entropy over operations, and how much each axis brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from dlrm_jax.cli.pictures import COLOURS, COMPACT, legend_beside, new_grid
from experiments.scaling.findings import Finding
from experiments.scaling.sizes import LADDER

_MARKERS = {"width": "s", "layers": "D", "rows": "^", "length": "v"}


def draw(findings: Sequence[Finding]) -> Figure:
    """Draws width and depth together with the laws, and below one thing at a time.

    Points are means over seeds, bars their range. Those at 0 or below have no place on the axis.
    """
    others = [(each, axis) for each in findings for axis in each.along if axis != LADDER]
    figure, grid = new_grid(7.6 if others else 4.0, 2 if others else 1, 1)
    colours = {each.model: COLOURS[i % len(COLOURS)] for i, each in enumerate(findings)}
    grid[0].set_title(f"{LADDER} together, with the laws", size=9.5, loc="left")
    for each in findings:
        law, flops, colour = each.law(), each.flops(LADDER), colours[each.model]
        if law:
            curve = np.geomspace(flops.min(), flops.max(), 100)
            grid[0].plot(curve, law(curve), color=colour, linewidth=1.2)
        _points(grid[0], each, LADDER, colour, "o", each.model)
    if others:
        grid[1].set_title("one thing at a time", size=9.5, loc="left")
    for each, axis in others:
        line: dict[str, Any] = {"color": colours[each.model], "linewidth": 0.8}
        grid[1].plot(each.flops(axis), each.excess(axis).mean(axis=1), **line)
        label = f"{each.model}, {axis}"
        _points(grid[1], each, axis, colours[each.model], _MARKERS[axis], label)
    for axes in grid:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(COMPACT)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.set_xlabel("FLOPs a sample of a training step")
        axes.set_ylabel("NE above the best possible")
        legend_beside(axes, fontsize=8)
    return figure


def _points(axes: Axes, finding: Finding, axis: str, colour: str, marker: str, label: str) -> None:
    excess, flops = finding.excess(axis), finding.flops(axis)
    mean = excess.mean(axis=1)
    spread = np.stack([mean - excess.min(axis=1), excess.max(axis=1) - mean])
    axes.errorbar(
        flops, mean, spread, fmt=marker, color=colour, markersize=4.5, linewidth=1, label=label
    )
