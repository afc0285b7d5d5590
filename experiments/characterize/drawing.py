"""Draws a step by class of operator, and sweeps over steps."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from dlrm_jax.cli.pictures import INK, legend_beside, new_grid, note, percent, short
from experiments.characterize.profile import DATA, IDLE

# Related classes have tints of one colour.
_COLOURS = {
    "top_mlp": "#0072b2", "bottom_mlp": "#80b9d9", "interaction": "#009e73", "lookup": "#d55e00",
    "update": "#f0b183", "optimizer": "#cc79a7", "loss": "#e9c6d8", "all-to-all": "#e69f00",
    "all-reduce": "#f3d080", "all-gather": "#8a6100", DATA: "#6b6b6b", "other": "#a8a8a8",
    IDLE: "#dedede",
}  # fmt: skip
_MORE = ("#332288", "#56b4e9", "#117733", "#aa4499", "#999933", "#882255", "#44aa99", "#661100")


def colours(names: Sequence[str]) -> dict[str, str]:
    """The colour of each class, fixed for the classes of every model, the others in order."""
    more = itertools.cycle(_MORE)
    added = {name: next(more) for name in names if name not in _COLOURS}
    fixed = {name: colour for name, colour in _COLOURS.items() if name in names}
    last = {name: fixed.pop(name) for name in (DATA, "other", IDLE) if name in fixed}
    return fixed | added | last


def draw_step(result: Mapping[str, Any]) -> Figure:
    """Draws the time by class, and the computing classes under the machine's roofs."""
    classes = result["classes"]
    figure, (left, right) = new_grid(1.6 + 0.24 * max(8, len(classes)), 1, 2)
    colour = colours(list(classes))
    names = sorted(classes, key=lambda name: classes[name]["ms"])
    times = [classes[name]["ms"] for name in names]
    limits = [classes[name].get("limit_ms", 0.0) for name in names]
    left.barh(range(len(names)), times, 0.66, color=[colour[name] for name in names])
    limited = [y for y, limit in enumerate(limits) if limit]
    left.vlines(
        [limits[y] for y in limited], [y - 0.4 for y in limited], [y + 0.4 for y in limited],
        color="black", linewidth=1.4, label="at the machine's speeds",
    )  # fmt: skip
    left.legend(loc="lower right", frameon=False, fontsize=8)
    for y, name in enumerate(names):
        text = f"{times[y]:.3g} ms, {percent(classes[name]['share'])}"
        note(left, text, (max(times[y], limits[y]), y), (5, 0), va="center")
    left.set_yticks(range(len(names)), [short(name) for name in names], parse_math=False)
    left.tick_params(axis="y", length=0)
    left.set_xlim(0, 1.35 * max(*times, *limits))
    left.set_xticks([])
    left.spines["bottom"].set_visible(False)
    left.set_title(
        f"{result['preset']}, batch {result['batch_size']:,}, mesh {result['mesh']}: "
        f"{result['profiled_ms']:.3g} ms a step",
        size=9.5,
        loc="left",
    )
    _draw_roofs(right, result["machine"])
    computing = [name for name in names if classes[name].get("gflop")]
    computing.sort(key=lambda name: classes[name]["flops_per_byte"])
    for i, name in enumerate(computing):
        at = classes[name]["flops_per_byte"], classes[name]["gflops_per_second"]
        right.plot(*at, "o", color=colour[name], markersize=6)
        # Neighbours have labels above and below.
        offset = (0, -14 if i % 2 else 7)
        note(right, short(name), at, offset, ha="center", parse_math=False)
    return figure


def _draw_roofs(axes: Axes, machine: Mapping[str, float]) -> None:
    top = machine["gflops"]
    ends = np.array([1e-2, 1e3])
    for name, style in (("stream", "-"), ("row", "--")):
        speed = machine[f"{name}_gib_per_second"] * 2**30 / 1e9
        edge = np.array([ends[0], top / speed, ends[1]])
        label = "read in sequence" if name == "stream" else "rows at random"
        axes.plot(edge, np.minimum(edge * speed, top), style, color=INK, linewidth=1.1, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*ends)
    axes.set_ylim(top / 1e4, 3 * top)
    axes.yaxis.set_major_locator(LogLocator(numticks=9))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("FLOPs per byte")
    axes.set_ylabel("GFLOP/s")
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    axes.set_title(f"{top:.3g} GFLOP/s in a large matrix product", size=9.5, loc="left")


def draw_sweep(what: str, results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draws the steps of a sweep as stacked bars of their classes, and each class as a curve."""
    names = list(dict.fromkeys(name for result in results.values() for name in result["classes"]))
    colour = colours(names)
    figure, (left, right) = new_grid(3.4, 1, 2)
    ticks = np.arange(len(results))
    bottom = np.zeros(len(results))
    for name in colour:
        times = np.array(
            [result["classes"].get(name, {"ms": 0.0})["ms"] for result in results.values()]
        )
        left.bar(ticks, times, 0.62, bottom, color=colour[name], label=name)
        bottom += times
        if times.any():
            right.plot(
                ticks, np.where(times > 0, times, np.nan), "o-", color=colour[name],
                linewidth=1.5, markersize=3.5,
            )  # fmt: skip
    for x, total in zip(ticks, bottom, strict=True):
        note(left, f"{total:.3g}", (x, total), (0, 2), ha="center")
    right.plot(ticks, bottom, "k:", linewidth=1.2, label="step")
    right.set_yscale("log")
    right.yaxis.set_major_formatter("{x:g}")
    right.yaxis.set_minor_formatter(NullFormatter())
    for axes in (left, right):
        axes.set_xticks(ticks, list(results))
        axes.set_xlabel(what.replace("_", " "))
    left.set_ylabel("ms a step")
    handles, labels = left.get_legend_handles_labels()
    line, step = right.get_legend_handles_labels()
    legend_beside(right, handles=line + handles[::-1], labels=step + labels[::-1], fontsize=8)
    return figure
