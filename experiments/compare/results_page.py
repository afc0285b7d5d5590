"""The table, the pictures and the page of a comparison of models."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dlrm_jax.cli.page import Page
from dlrm_jax.cli.pictures import COLOURS, PERCENT, compact, legend_beside, new_axes, note, save
from dlrm_jax.cli.shown import metric_name
from dlrm_jax.models.history_ranking import HistoryRanking
from dlrm_jax.models.zoo import MODELS
from experiments.compare.bounds import TEACHER
from experiments.compare.ranks import rank_ranges, shown
from experiments.compare.tasks import Task
from experiments.compare.trials import Result

_COSTS = ("parameters", "matrix FLOPs per example", "ms per step", "MiB of state", "MiB temporary")
_MIB = 2**20

Limits = Mapping[str, Mapping[str, float]]
"""Test metrics of what no model can beat, by name, see `bounds`."""


def columns(task: Task) -> tuple[str, ...]:
    """The header of the table."""
    rank = f"rank by {metric_name(task.ranked_by)}"
    return ("model", "optimizer", "learning rate", rank, *map(metric_name, task.shown), *_COSTS)


def rows_of(results: Sequence[Result], task: Task, limits: Limits) -> list[tuple[str, ...]]:
    """The cells of each result and each limit, under `columns`."""
    rows = []
    ranks = rank_ranges([result.test(task.ranked_by) for result in results])
    for result, rank in zip(results, ranks, strict=True):
        first = result.trials[0]
        times = [trial["milliseconds"] for trial in result.trials if trial["milliseconds"]]
        temporary = first["temporary_bytes"]
        row = (
            result.contender.name,
            result.contender.optimizer,
            f"{result.learning_rate:g}",
            shown(rank),
            *(mean_and_deviation(result.test(metric)) for metric in task.shown),
            compact(first["parameters"]),
            flops_of(result),
            f"{statistics.median(times):.2f}" if times else "-",
            f"{first['bytes'] / _MIB:,.1f}",
            "-" if temporary is None else f"{temporary / _MIB:,.1f}",
        )
        rows.append(row)
    for name, metrics in limits.items():
        values = (f"{metrics[metric]:.4f}" for metric in task.shown)
        rows.append((name, "", "", "", *values, *("" for _ in _COSTS)))
    return rows


def flops_of(result: Result) -> str:
    """FLOPs of matrix products for an example as text; a dash where the data decide them.

    The loops over blocks of a history end by its length, so a program doesn't tell how many.
    """
    kind = MODELS.get(result.contender.model)
    counted = kind is None or not issubclass(kind, HistoryRanking)
    return compact(result.trials[0]["flops"]) if counted else "-"


def mean_and_deviation(values: Sequence[float]) -> str:
    """Formats values as 0.8012 ± 0.0004; a single value has no deviation, and nan no number."""
    mean = float(np.mean(values))
    if len(values) == 1 or math.isnan(mean):
        return f"{mean:.4f}"
    return f"{mean:.4f} ± {statistics.stdev(values):.4f}"


def write_page(results: Sequence[Result], task: Task, limits: Limits, path: Path) -> None:
    """Writes one HTML file with everything, and its pictures beside it."""
    seeds = max(len(result.trials) for result in results)
    spread = f"mean and standard deviation over {seeds} seeds" if seeds > 1 else "of 1 seed"
    page = Page("Models compared")
    page.text(f"Data: {task.data.source}.")
    page.text(
        f"Test metrics at the evaluation that is best on the validation split; {spread}. The "
        f"learning rate was chosen on the validation split with the first seed. All models have "
        f"the same data, batches and steps. Models whose seeds leave open which one is better, by "
        f"Welch's test at 5 %, tie: their ranks are ranges."
    )
    header, rows = columns(task), rows_of(results, task, limits)
    split = len(header) - len(_COSTS)
    page.heading("Test metrics")
    page.table(header[:split], [row[:split] for row in rows], texts=2)
    page.heading("Costs")
    page.table((*header[:2], *_COSTS), [(*row[:2], *row[split:]) for row in rows], texts=2)
    for name, (title, figure) in pictures(results, task, limits).items():
        page.heading(title)
        page.picture(figure, title)
        save(figure, str(path.parent / f"{name}.png"))
    page.write(path)


def pictures(
    results: Sequence[Result], task: Task, limits: Limits
) -> dict[str, tuple[str, Figure]]:
    """Titles and pictures, by file name."""
    metric = task.ranked_by
    title = f"Test {metric_name(metric)}: mean and range over seeds"
    drawn = {"models": (title, draw_ranks(results, task, limits))}
    for optimizer in dict.fromkeys(result.contender.optimizer for result in results):
        chosen = [result for result in results if result.contender.optimizer == optimizer]
        curve = metric_name(task.curve)
        title = f"{curve[0].upper()}{curve[1:]} over iterations, {optimizer}"
        drawn[optimizer] = (title, draw_curves(chosen, task))
    return drawn


def draw_ranks(results: Sequence[Result], task: Task, limits: Limits) -> Figure:
    """Draws a point for each contender and a line over its seeds, the best at the top."""
    metric = task.ranked_by
    # Results without a metric, NaN, are at the bottom.
    ranked = sorted(results, key=lambda each: np.nan_to_num(each.mean(metric), nan=-np.inf))
    figure, axes = new_axes(max(2.4, 0.8 + 0.24 * len(ranked)))
    draw_points(axes, [result.test(metric) for result in ranked])
    draw_limits(axes, limits, metric)
    names = [str(each.contender) for each in ranked]
    axes.set_yticks(range(len(ranked)), names, parse_math=False)
    axes.set_ylim(-0.6, len(ranked) - 0.4)
    axes.set_xlabel(f"test {metric_name(metric)}: mean, and the range over seeds", loc="left")
    return figure


def draw_points(axes: Axes, values: Sequence[Sequence[float]]) -> None:
    """Draws the mean of each row's values and a line over their range, from the bottom upwards."""
    for i, own in enumerate(values):
        axes.plot([min(own), max(own)], [i, i], color=COLOURS[0], linewidth=1.5)
        axes.plot(statistics.mean(own), i, "o", color=COLOURS[0], markersize=5)
    axes.grid(axis="x", linewidth=0.3)


def draw_limits(axes: Axes, limits: Limits, metric: str) -> None:
    """Draws a line for each limit, with its name."""
    for name, metrics in limits.items():
        colour = COLOURS[1] if name == TEACHER else COLOURS[2]
        axes.axvline(metrics[metric], color=colour, linewidth=1)
        place = {"xycoords": ("data", "axes fraction"), "ha": "right", "va": "bottom"}
        settings = {"color": colour, "rotation": 90, **place}
        note(axes, name.removeprefix("the "), (metrics[metric], 0), (-2, 4), **settings)


def draw_curves(results: Sequence[Result], task: Task) -> Figure:
    """Draws training and validation by step, for the first seeds (figure 5 of the DLRM paper)."""
    figure, axes = new_axes(max(3.6, 0.6 + 0.34 * len(results)))
    for colour, result in zip(itertools.cycle(_MANY_COLOURS), results, strict=False):
        curve = result.trials[0]["curve"]
        steps = [point["step"] for point in curve]
        for split, style in (("train", "-"), ("validation", "--")):
            values = [point[split][task.curve] for point in curve]
            if None not in values:  # choices have no metric of the training split
                label = f"{result.contender.name}, {split}"
                axes.plot(steps, values, style, color=colour, linewidth=1.3, label=label)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_xlabel("iterations", loc="left")
    axes.set_ylabel(metric_name(task.curve), loc="bottom")
    legend_beside(axes, fontsize=8)
    return figure


_MANY_COLOURS = (*COLOURS, "#56b4e9", "#f0e442", "#000000", "#999999")
