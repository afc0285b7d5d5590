"""The results of the loop over days: a table, a page and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from dlrm_jax.cli.page import Page
from dlrm_jax.cli.pictures import COLOURS, legend_beside, new_grid, percent
from dlrm_jax.config import Config
from dlrm_jax.daily import Entry
from dlrm_jax.files import replacing
from dlrm_jax.saved_config import file_text
from dlrm_jax.text_table import text_table
from dlrm_jax.training.model import unread

_METRICS = {
    "auc": "AUC",
    "log_loss": "log loss",
    "normalized_entropy": "NE",
    "calibration": "calibration",
}
_MODELS = {"updated": "updated", "not_updated": "first day's"}
_DRAWN = ("auc", "normalized_entropy", "calibration")


def printed(days: Sequence[Entry]) -> str:
    """The table of all days, and how many were better with the update."""
    header, rows = _cells(days)
    return f"{text_table(header, rows)}\n{told(days)}"


def told(days: Sequence[Entry]) -> str:
    """A sentence on whether updates were better than none, over the days after the first."""
    later = days[1:]
    if not later:
        return "the model of the first day has no update yet: the comparison begins with the second"
    counts = []
    for metric, is_better in (
        ("auc", lambda day: day["updated"]["auc"] > day["not_updated"]["auc"]),
        ("log_loss", lambda day: day["updated"]["log_loss"] < day["not_updated"]["log_loss"]),
    ):
        counts.append(f"{sum(map(is_better, later))} by {_METRICS[metric]}")
    means = [
        f"{_METRICS[metric]} {_mean(later, 'updated', metric):.5f} against "
        f"{_mean(later, 'not_updated', metric):.5f}"
        for metric in ("auc", "log_loss")
    ]
    return (
        f"after the first day, the updated model was better than the first day's on "
        f"{' and '.join(counts)} of {len(later)} days; means: {', '.join(means)}"
    )


def write_page(days: Sequence[Entry], config: Config, workdir: Path) -> None:
    """Writes ``days.html`` and ``days.svg``."""
    figure = _drawn(days)
    page = Page(f"Day after day: {workdir.resolve().name}")
    page.text(
        "Each model was tested on the day after the last one that it had trained on. The updated "
        "model has trained on all days before, one after the other. The first day's model has "
        "trained on the first day alone, and has its vocabularies."
    )
    page.text(f"{told(days)[0].upper()}{told(days)[1:]}.")
    page.heading("Tests on the next day")
    page.picture(figure, "lines: AUC, normalized entropy and calibration by day, of both models")
    page.heading("All days")
    page.text(
        "New ids are the values of a day that had no row before it. Unknown ids are the values of "
        "the next day that a model has no row for."
    )
    header, rows = _cells(days)
    page.table(header, rows, texts=2)
    page.heading("Config")
    for line in file_text(config, unread(config)).strip("{}\n ").splitlines():
        page.text(line.strip(" ,"))
    page.write(workdir / "days.html")
    with replacing(workdir / "days.svg") as temporary:
        figure.savefig(temporary, format="svg")


def _cells(days: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    header = ["day", "tested on", "rows", "new ids"]
    header += [f"unknown ids, {name}" for name in _MODELS.values()]
    header += [f"{text}, {name}" for text in _METRICS.values() for name in _MODELS.values()]
    rows = [
        [
            day["day"],
            day["tested_on"],
            f"{day['rows']:,}",
            "" if day["new_ids"] is None else percent(day["new_ids"]),
            *(percent(day["unknown_ids"][model]) for model in _MODELS),
            *(_number(day[model][metric]) for metric in _METRICS for model in _MODELS),
        ]
        for day in days
    ]
    return header, rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"  # none where a class is missing


def _mean(days: Sequence[Entry], model: str, metric: str) -> float:
    return sum(day[model][metric] for day in days) / len(days)


def _drawn(days: Sequence[Entry]) -> Figure:
    figure, grid = new_grid(5.4, len(_DRAWN), 1)
    names = [day["tested_on"] for day in days]
    places = list(range(len(days)))
    for axes, metric in zip(grid, _DRAWN, strict=True):
        for colour, (model, text) in zip(COLOURS, _MODELS.items(), strict=False):
            values = [day[model][metric] for day in days]
            axes.plot(places, values, color=colour, linewidth=1.5, marker="o", ms=4, label=text)
        axes.set_ylabel(_METRICS[metric])
        shown = places[:: max(1, len(places) // 10)]
        axes.set_xticks(shown, [names[i] for i in shown], parse_math=False)
    legend_beside(grid[0])
    grid[-1].set_xlabel("day of the test")
    return figure
