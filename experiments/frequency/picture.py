"""Draws the skew of lookups and the effect of the order of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int64
from matplotlib.figure import Figure

from dlrm_jax.cli.pictures import (
    COLOURS,
    INK,
    PERCENT,
    compact,
    draw_lines,
    legend_beside,
    log_ranks,
    new_grid,
    short,
)
from dlrm_jax.data.statistics import Column


def draw(columns: Sequence[Column], changes: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draws the lookups that the hottest rows serve and, below, changes by the order of rows.

    ``changes`` has quantities over those of the random order, by order and name.
    """
    figure, (above, below) = new_grid(6.4, 2, 1)
    together = np.concatenate([column.occurrences for column in columns])
    curves = [("all tables", *_served(np.sort(together)))]
    for column in sorted(columns, key=lambda column: column.rows, reverse=True):
        name = f"{short(column.name)}, {compact(column.rows)} rows"
        curves.append((name, *_served(np.sort(column.occurrences))))
    draw_lines(above, curves, "tables")
    above.set_xscale("log")
    above.set_xlim(1e-6, 1)
    above.set_ylim(0, 1)
    above.xaxis.set_major_formatter(PERCENT)
    above.yaxis.set_major_formatter(PERCENT)
    above.set_xlabel("hottest rows of the table")
    above.set_ylabel("lookups that they serve")

    names = list(next(iter(changes.values())))
    height = 0.8 / len(changes)
    for i, (order, values) in enumerate(changes.items()):
        below.barh(
            np.arange(len(names)) + (i - (len(changes) - 1) / 2) * height,
            [values[name] for name in names],
            height,
            color=COLOURS[i],
            label=f"by {order.replace('_', ' ')}",
        )
    below.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    below.set_yticks(range(len(names)), names)
    below.invert_yaxis()
    below.tick_params(axis="y", length=0)
    below.xaxis.set_major_formatter(PERCENT)
    below.set_xlabel("of those with rows in random order")
    legend_beside(below)
    return figure


def _served(ascending: Int64[np.ndarray, " R"]) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the rows, and of the lookups that they serve."""
    total = np.cumsum(ascending[::-1])
    ranks = log_ranks(len(total))
    return ranks / len(total), total[ranks - 1] / max(1, total[-1])
