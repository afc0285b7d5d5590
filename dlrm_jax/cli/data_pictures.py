"""Pictures of prepared data: labels by day, frequencies of ids, unseen values by day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlrm_jax.cli.pictures import (
    COMPACT,
    FILLS,
    PERCENT,
    compact,
    draw_lines,
    log_ranks,
    new_axes,
    note,
    percent,
    short,
)
from dlrm_jax.data.statistics import Column, Day

_MOST_LABELLED_DAYS = 31
_MOST_DATES = 9


def draw_labels(days: Sequence[Day], names: Sequence[str]) -> Figure:
    """Bars of the share of label 1, one for each day, which has a name."""
    figure, axes = new_axes(2.2)
    kinds = {"training": True, "only validation and test": False}
    for (name, trained), fill in zip(kinds.items(), FILLS, strict=True):
        numbers = [i for i, day in enumerate(days) if bool(day.by_split["train"]) == trained]
        if numbers:
            axes.bar(numbers, [days[i].label_rate for i in numbers], 0.6, color=fill, label=name)
    axes.tick_params(axis="x", length=0)
    if len(days) <= _MOST_LABELLED_DAYS:
        for i, day in enumerate(days):
            if day.examples:
                label = f"{100 * day.label_rate:.1f}"
                note(axes, label, (i, day.label_rate), (0, 2), ha="center")
        step = _step(names)
        ticks = [
            f"{'' if i % step else names[i]}\n{compact(day.examples)}" for i, day in enumerate(days)
        ]
        axes.set_xticks(range(len(days)), ticks, size=8)
        axes.set(xlabel="day, and its number of examples", ylabel="share of label 1, %", yticks=[])
        axes.spines["left"].set_visible(False)
    else:
        _name_days(axes, names)
        axes.yaxis.set_major_formatter(PERCENT)
        axes.set(xlabel="day", ylabel="share of label 1")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1.06), ncols=2, frameon=False, fontsize=9)
    return figure


def draw_frequencies(columns: Sequence[Column]) -> Figure:
    """Lines of the lookups of each row by its rank, one for each table; both logarithmic."""
    curves = []
    for column in sorted(columns, key=lambda column: column.rows, reverse=True):
        ranks = log_ranks(column.touched)
        name = f"{short(column.name)}, {compact(column.rows)} rows"
        curves.append((name, ranks, column.descending[ranks - 1]))
    figure, axes = new_axes(4)
    axes.set(xscale="log", yscale="log")
    draw_lines(axes, curves, "tables")
    axes.xaxis.set_major_formatter(COMPACT)
    axes.yaxis.set_major_formatter(COMPACT)
    axes.set(xlabel="rank of the row by frequency", ylabel="lookups of the row in training")
    return figure


def draw_unseen(unseen: Mapping[str, Sequence[float]], names: Sequence[str]) -> Figure:
    """Lines of the share of unseen values by day, one for each column, that of most first."""
    worst = sorted(unseen, key=lambda name: np.nan_to_num(unseen[name][-1]), reverse=True)
    curves = []
    for name in worst:
        label = f"{short(name)}, {percent(unseen[name][-1])} on the last day"
        curves.append((label, np.arange(len(unseen[name])), np.array(unseen[name])))
    figure, axes = new_axes(3.4)
    draw_lines(axes, curves, "columns")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(PERCENT)
    _name_days(axes, names)
    axes.set(xlabel="day", ylabel="share of unseen values")
    return figure


def _name_days(axes: Axes, names: Sequence[str]) -> None:
    step = _step(names)
    axes.set_xticks(range(0, len(names), step), names[::step])


def _step(names: Sequence[str]) -> int:
    """The days from one whose name is shown to the next: dates need more room than numbers."""
    most = _MOST_LABELLED_DAYS if len(names[-1]) <= 3 else _MOST_DATES
    return -(-len(names) // most)
