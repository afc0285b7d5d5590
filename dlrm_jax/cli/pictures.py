"""Pictures of one style, for pages: figures that no window shows and no global state holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import FuncFormatter

from dlrm_jax.files import creating, replacing

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
"""Colours of lines, by Okabe and Ito: the colour-blind can tell them apart."""
FILLS = ("#6699bb", "#ddaa55")
"""Colours of areas, which need less colour than lines."""

INK = "#333333"
"""Colour of axes and of what limits."""

_BACKGROUND = "#b8b8b8"
_WIDTH = 9.6  # inches; the page is as wide
_LONGEST_NAME = 28

Curve = tuple[str, np.ndarray, np.ndarray]
"""Name, x and y."""


def new_axes(height: float) -> tuple[Figure, Axes]:
    """The axes of a new figure, as wide as a page and so many inches high."""
    figure, (axes,) = new_grid(height, 1, 1)
    return figure, axes


def new_grid(
    height: float, rows: int, columns: int, ratios: Sequence[float] | None = None
) -> tuple[Figure, list[Axes]]:
    """As `new_axes`, with several axes in rows; ``ratios`` are those of the rows' heights."""
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=ratios)
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        for spine in axes.spines.values():
            spine.set(color=INK, linewidth=0.6)
        axes.tick_params(which="both", color=INK, labelcolor=INK, labelsize=9, width=0.6)
        for axis in (axes.xaxis, axes.yaxis):
            axis.label.set(color=INK, size=9)
    return figure, list(grid.flat)


def note(
    axes: Axes, text: str, at: tuple[Any, Any], offset: tuple[int, int], **settings: Any
) -> None:
    """A small text beside a point, so many points of type away from it."""
    axes.annotate(text, at, offset, textcoords="offset points", size=8, **settings)


def legend_beside(axes: Axes, **settings: Any) -> Legend:
    """A legend to the right of the axes, where it hides nothing; names are no formulas."""
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1), "fontsize": 9}
    legend = axes.legend(frameon=False, **place | settings)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return legend


def legend_above(figure: Figure, axes: Axes) -> None:
    """A legend of what one of several axes shows, in a line above all of them."""
    handles, labels = axes.get_legend_handles_labels()
    place: Any = {"loc": "outside upper left", "ncols": len(labels)}
    figure.legend(handles, labels, frameon=False, fontsize=9, **place)


def save(figure: Figure, path: str, replace: bool = True) -> None:
    """Writes a picture in the format of its name, and prints the name.

    Raises:
        UserError: a file is there that isn't to be replaced.
    """
    with (replacing if replace else creating)(Path(path)) as temporary:
        figure.savefig(temporary, format=Path(path).suffix[1:], dpi=120)
    print(f"picture: {path}")


def bars(shares: Mapping[str, float], label: str) -> Figure:
    """Horizontal bars of shares from 0 to 1 with their values, the longest at the top."""
    pairs = sorted(shares.items(), key=lambda pair: pair[1])
    figure, axes = new_axes(0.6 + 0.2 * len(pairs))
    axes.barh(range(len(pairs)), [share for _, share in pairs], 0.6, color=FILLS[0])
    for i, (_, share) in enumerate(pairs):
        note(axes, percent(share), (share, i), (3, 0), va="center")
    axes.set_yticks(range(len(pairs)), [short(name) for name, _ in pairs], parse_math=False)
    axes.set_ylim(-0.6, len(pairs) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_xlabel(label, loc="left")
    return figure


def draw_lines(axes: Axes, curves: Sequence[Curve], others: str) -> None:
    """Draws the first curves in colours, with a legend, and the others as their background."""
    named, unnamed = curves[: len(COLOURS)], curves[len(COLOURS) :]
    for colour, (_, x, y) in zip(COLOURS, named, strict=False):
        axes.plot(x, y, color=colour, linewidth=1.5, label="line")
    for i, (_, x, y) in enumerate(unnamed):
        label = None if i else "line"
        axes.plot(x, y, color=_BACKGROUND, linewidth=0.8, zorder=1, label=label)
    # Names come later: a label that begins with an underscore would be left out.
    rest = others if len(unnamed) != 1 else others.removesuffix("s")
    names = [*(name for name, _, _ in named), f"{len(unnamed)} other {rest}"]
    for text, name in zip(legend_beside(axes).get_texts(), names, strict=False):
        text.set_text(name)


def log_ranks(count: int) -> np.ndarray:
    """Some hundred ranks from 1 to ``count``, evenly spread on a logarithmic axis."""
    return np.unique(np.geomspace(1, max(1, count), 300).round().astype(int))[:count]


def percent(share: float) -> str:
    """A share as text: 0%, <0.1%, 12.3%; a dash for NaN."""
    if math.isnan(share):
        return "\u2013"
    if not share:
        return "0%"
    return "<0.1%" if share < 0.001 else f"{share:.1%}"


def compact(number: float) -> str:
    """A number in three digits: 7, 45.2k, 10.1M."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{suffix}"
    return f"{number:.3g}"


def short(name: str) -> str:
    """A name that leaves room for the picture."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


PERCENT = FuncFormatter(lambda share, _: f"{100 * share:g}%")
"""Format of the ticks of an axis of shares."""
COMPACT = FuncFormatter(lambda number, _: compact(number))
"""Format of the ticks of an axis of counts."""
