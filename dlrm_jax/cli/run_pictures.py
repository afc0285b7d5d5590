"""Pictures of a run: learning curves, calibration, days, importances, slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dlrm_jax.cli.pictures import (
    COLOURS,
    COMPACT,
    FILLS,
    INK,
    PERCENT,
    compact,
    legend_above,
    new_axes,
    new_grid,
    note,
    short,
)

_Json = Mapping[str, Any]

SPLIT_COLOURS = {"train": COLOURS[2], "validation": COLOURS[1], "test": COLOURS[0]}
_MOST_POINTS = 1000
_SMOOTHED = 40  # points of the mean line of the training loss, at least
_MOST_FEATURES = 40
_MOST_SLICES = 15
_MOST_DAYS = 12  # whose names have room below the axis
_PALE = "#cfcfcf"


def draw_curves(
    record: Sequence[_Json],
    evaluated: str,
    best_step: int | None,
    panels: Sequence[str],
    label_weights: Mapping[str, float],
) -> Figure:
    """Training loss and metrics of an evaluation by step, with cuts of the learning rate.

    Args:
        record: lines of the run's ``metrics.jsonl``.
        evaluated: split whose metrics are drawn: ``validation``, or ``prequential`` of a stream.
        best_step: step of the best checkpoint; None if there is none.
        panels: metrics that get axes of their own, beside that of the loss.
        label_weights: weight of each label in the loss, by what its metrics begin with.
    """
    columns = min(2, 1 + len(panels))
    rows = -(-(1 + len(panels)) // columns)
    figure, (loss, *others) = new_grid(0.3 + 2.3 * rows, rows, columns)
    validation = [x for x in record if x["split"] == evaluated]
    of_labels = ", sum over labels" if len(label_weights) > 1 else ""
    training = [x for x in record if x["split"] == "train"]
    _draw_training(loss, training, f"training loss{of_labels or ', batches'}")
    sums = [{"step": x["step"], "loss": _log_loss(x, label_weights)} for x in validation]
    _draw_metric(loss, sums, "loss", f"{evaluated} log loss{of_labels}")
    loss.set_ylabel("loss")
    for axes, name in zip(others, panels, strict=False):
        _draw_metric(axes, validation, name, f"{evaluated} {name}")
        axes.set_ylabel(name)
    for axes in others[len(panels) :]:
        axes.set_visible(False)
    cuts = [x["step"] for x in record if x["split"] == "learning_rate"]
    last = max(x["step"] for x in record)
    for axes in (loss, *others[: len(panels)]):
        for i, step in enumerate(cuts):
            label = None if i else "cut of the learning rate"
            axes.axvline(step, color=COLOURS[4], linewidth=0.9, linestyle="--", label=label)
        if best_step is not None:
            axes.axvline(best_step, color=INK, linewidth=0.9, linestyle=":", label="best")
        axes.xaxis.set_major_formatter(COMPACT)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlim(0, 1.03 * last)
        axes.set_xlabel("step")
    legend_above(figure, loss)
    return figure


def _log_loss(line: _Json, label_weights: Mapping[str, float]) -> float | None:
    """The log loss of validation, summed over the labels as the training loss is."""
    losses = [line.get(f"{label}log_loss") for label in label_weights]
    known = [x for x in losses if x is not None]
    if len(known) < len(losses):
        return None
    return sum(x * weight for x, weight in zip(known, label_weights.values(), strict=True))


def _draw_training(axes: Axes, lines: Sequence[_Json], label: str) -> None:
    steps = np.array([x["step"] for x in lines], float)
    losses = np.array([np.nan if x["loss"] is None else x["loss"] for x in lines], float)
    steps, losses = (_thinned(x, _MOST_POINTS) for x in (steps, losses))
    axes.plot(steps, losses, color=_PALE, linewidth=0.8, zorder=1, label=label)
    if len(steps) > 2 * _SMOOTHED:
        smooth = (_thinned(x, _SMOOTHED) for x in (steps, losses))
        axes.plot(*smooth, color=SPLIT_COLOURS["train"], linewidth=1.5, label="its mean")
    # The first steps would flatten all others.
    finite = losses[np.isfinite(losses)]
    if len(finite) > _SMOOTHED:
        low, high = np.quantile(finite, (0.005, 0.98))
        axes.set_ylim(low - 0.1 * (high - low), high + 0.25 * (high - low))


def _thinned(values: np.ndarray, most: int) -> np.ndarray:
    """Means of about equally many values that follow each other; so many means, if need be."""
    if len(values) <= most:
        return values
    return np.array([part.mean() for part in np.array_split(values, most)])


def _draw_metric(axes: Axes, lines: Sequence[_Json], name: str, label: str) -> None:
    points = [(x["step"], x[name]) for x in lines if x.get(name) is not None]
    if not points:
        return
    steps, values = zip(*points, strict=True)
    marker = {"marker": "o", "markersize": 3} if len(points) <= 60 else {}
    axes.plot(
        steps, values, color=SPLIT_COLOURS["validation"], linewidth=1.5, label=label, **marker
    )
    if axes.get_ylim()[1] < max(values) or axes.get_ylim()[0] > min(values):
        axes.autoscale(axis="y")


def draw_calibration(buckets: Sequence[_Json]) -> Figure:
    """The share of label 1 by the mean prediction, and how far they are from each other."""
    figure, (axes, ratios) = new_grid(3.4, 1, 2)
    predicted = np.array([x["prediction"] for x in buckets])
    rates, low, high = (
        np.array([x[key] for x in buckets]) for key in ("label_rate", "low", "high")
    )
    errors = np.clip([rates - low, high - rates], 0, None)
    ends = [min(predicted.min(), rates.min()), max(predicted.max(), rates.max())]
    axes.plot(ends, ends, color=INK, linewidth=0.8, linestyle=":", label="calibrated")
    axes.errorbar(
        predicted, rates, errors, fmt="o", markersize=4, color=COLOURS[0], elinewidth=1,
        label="bucket, 95 %",
    )  # fmt: skip
    axes.set(xlabel="mean prediction", ylabel="share of label 1")
    axes.xaxis.set_major_formatter(PERCENT)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    places = np.arange(1, len(buckets) + 1)
    ratios.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(rates > 0, predicted / rates, np.nan)
    ratios.bar(places, ratio - 1, 0.7, 1, color=FILLS[0])
    ratios.set(xlabel="bucket, from low to high predictions", ylabel="prediction / label rate")
    ratios.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    return figure


def draw_days(days: Sequence[_Json]) -> Figure:
    """AUC by day, and the share of label 1 beside the mean prediction."""
    figure, (above, below) = new_grid(4.6, 2, 1)
    names = list(dict.fromkeys(x["day"] for x in sorted(days, key=lambda x: x["number"])))
    below.plot([], [], "o", color=INK, markersize=5, label="mean prediction")
    below.plot([], [], "x", color=INK, markersize=6, label="share of label 1")
    for split, colour in SPLIT_COLOURS.items():
        own = [x for x in days if x["split"] == split]
        if not own:
            continue
        at = [names.index(x["day"]) for x in own]
        aucs = [np.nan if x["auc"] is None else x["auc"] for x in own]
        above.plot(at, aucs, "o-", color=colour, markersize=5, linewidth=1, label=split)
        predicted = [x["prediction"] for x in own]
        below.plot(at, predicted, "o-", color=colour, markersize=5, linewidth=1)
        below.plot(at, [x["label_rate"] for x in own], "x", color=colour, markersize=6)
    above.set_ylabel("AUC")
    below.set_ylabel("share of label 1")
    below.yaxis.set_major_formatter(PERCENT)
    above.legend(frameon=False, fontsize=9, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    below.legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    step = -(-len(names) // _MOST_DAYS)
    for axes in (above, below):
        axes.set_xticks(range(0, len(names), step), names[::step])
        axes.set_xlim(-0.5, len(names) - 0.5)
    above.tick_params(labelbottom=False)
    return figure


def draw_importances(features: Sequence[_Json]) -> Figure:
    """Bars of the loss of AUC without each feature, the largest at the top."""
    shown = list(reversed(features[:_MOST_FEATURES]))
    figure, axes = new_axes(0.6 + 0.2 * len(shown))
    means = [x["auc_loss"] for x in shown]
    axes.barh(range(len(shown)), means, 0.6, color=FILLS[0])
    for i, each in enumerate(shown):
        losses = each["auc_losses"]
        axes.plot([min(losses), max(losses)], [i, i], color=INK, linewidth=1)
        note(axes, f"{each['auc_loss']:.4f}", (max(0, *losses), i), (4, 0), va="center")
    axes.set_yticks(range(len(shown)), [short(x["feature"]) for x in shown], parse_math=False)
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.axvline(0, color=INK, linewidth=0.6)
    axes.tick_params(axis="y", length=0)
    axes.set_xticks([])
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.set_xlabel("loss of AUC, and its range over the permutations", loc="left")
    return figure


def furthest(slices: Sequence[_Json]) -> list[_Json]:
    """The slices whose predictions are furthest from their labels, for their number of rows."""
    known = [x for x in slices if x["deviation"] is not None and np.isfinite(x["deviation"])]
    return sorted(known, key=lambda x: -abs(x["deviation"]))[:_MOST_SLICES]


def draw_slices(slices: Sequence[_Json]) -> Figure:
    """Mean prediction and share of label 1 of slices, from top to bottom."""
    shown = list(reversed(slices))
    figure, axes = new_axes(0.8 + 0.24 * len(shown))
    rates, predicted = ([x[key] for x in shown] for key in ("label_rate", "prediction"))
    places = list(range(len(shown)))
    axes.hlines(places, rates, predicted, color=_PALE, linewidth=2, zorder=1)
    axes.plot(predicted, places, "o", color=COLOURS[0], markersize=5, label="mean prediction")
    axes.plot(rates, places, "x", color=INK, markersize=5, label="share of label 1")
    names = [
        f"{short(x['feature'])} = {short(x['value'])}, {compact(x['examples'])} rows" for x in shown
    ]
    axes.set_yticks(places, names, parse_math=False)
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(PERCENT)
    axes.margins(x=0.05)
    axes.grid(axis="x", linewidth=0.3)
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    return figure
