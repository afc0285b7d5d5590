"""The table, the pictures and the page of a comparison of models."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dlrm_jax.data.arrays import Dataset
from experiments.page import Page
from experiments.pictures import COLOURS, PERCENT, compact, new_axes
from experiments.trials import Result

COLUMNS = (
    "model", "optimizer", "learning rate", "log loss", "AUC", "normalized entropy", "accuracy",
    "parameters", "FLOPs per example", "ms per step", "MiB held", "MiB temporary",
)  # fmt: skip
_MIB = 2**20


def rows_of(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """The results as texts, one row each, under `COLUMNS`."""
    return [_row(result) for result in results]


def _row(result: Result) -> tuple[str, ...]:
    first = result.trials[0]
    times = [trial["milliseconds"] for trial in result.trials if trial["milliseconds"]]
    temporary = first["temporary_bytes"]
    return (
        result.contender.name,
        result.contender.optimizer,
        f"{result.learning_rate:g}",
        *(
            mean_and_deviation(result.values("test", metric))
            for metric in ("log_loss", "auc", "normalized_entropy", "accuracy")
        ),
        compact(first["parameters"]),
        compact(first["flops"]),
        f"{statistics.median(times):.2f}" if times else "-",
        f"{first['bytes'] / _MIB:,.1f}",
        "-" if temporary is None else f"{temporary / _MIB:,.1f}",
    )


def mean_and_deviation(values: Sequence[float]) -> str:
    """Such as 0.8012 ± 0.0004; without the deviation for a single value."""
    mean = statistics.mean(values)
    return f"{mean:.4f}" + (f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else "")


def write_page(results: Sequence[Result], data: Dataset, path: Path) -> None:
    """One HTML file with everything.

    Args:
        results: in the order of the table.
        data: that they are of.
        path: of the file.
    """
    seeds = max(len(result.trials) for result in results)
    page = Page("Models compared")
    page.text(f"Data: {data.source}.")
    page.text(
        f"Test metrics at the evaluation with the best validation log loss; mean and standard "
        f"deviation over {seeds} seeds. The learning rate was chosen on the validation split with "
        f"the first seed. All models have the same data, batches and steps."
    )
    page.heading("Test metrics and costs")
    page.table(COLUMNS, rows_of(results), texts=2)
    page.picture(draw_aucs(results, data), "Test AUC of each model with the range of its seeds")
    for optimizer in dict.fromkeys(result.contender.optimizer for result in results):
        chosen = [result for result in results if result.contender.optimizer == optimizer]
        page.heading(f"Accuracy over iterations, {optimizer}")
        page.picture(draw_accuracy(chosen), f"Accuracy over iterations with {optimizer}")
    page.write(path)


def draw_aucs(results: Sequence[Result], data: Dataset) -> Figure:
    """A point for each contender and a line over its seeds, the best at the top."""
    ranked = sorted(results, key=lambda result: statistics.mean(result.values("test", "auc")))
    figure, axes = new_axes(0.8 + 0.24 * len(ranked))
    for i, result in enumerate(ranked):
        values = result.values("test", "auc")
        axes.plot([min(values), max(values)], [i, i], color=COLOURS[0], linewidth=1.5)
        axes.plot(statistics.mean(values), i, "o", color=COLOURS[0], markersize=5)
    if data.teacher_auc:
        axes.axvline(data.teacher_auc["test"], color=COLOURS[1], linewidth=1)
        axes.annotate("teacher", (data.teacher_auc["test"], 1), (-3, 0), ha="right", va="top",
                      xycoords=("data", "axes fraction"), textcoords="offset points", size=8,
                      color=COLOURS[1])  # fmt: skip
    names = [f"{each.contender.name}, {each.contender.optimizer}" for each in ranked]
    axes.set_yticks(range(len(ranked)), names, parse_math=False)
    axes.set_ylim(-0.6, len(ranked) - 0.4)
    axes.grid(axis="x", linewidth=0.3)
    axes.set_xlabel("test AUC: mean, and the range over seeds", loc="left")
    return figure


def draw_accuracy(results: Sequence[Result]) -> Figure:
    """Training and validation accuracy by step, of the first seeds (figure 5 of the DLRM paper)."""
    figure, axes = new_axes(3.6)
    colours = [*COLOURS, "#56b4e9", "#f0e442", "#000000", "#999999"]
    for colour, result in zip(colours, results, strict=False):
        curve = result.trials[0]["curve"]
        steps = np.array([point["step"] for point in curve])
        for split, style in (("train", "-"), ("validation", "--")):
            accuracy = np.array([point[split]["accuracy"] for point in curve])
            label = f"{result.contender.name}, {split}"
            axes.plot(steps, accuracy, style, color=colour, linewidth=1.3, label=label)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.set_xlabel("iterations", loc="left")
    axes.set_ylabel("accuracy", loc="bottom")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    return figure
