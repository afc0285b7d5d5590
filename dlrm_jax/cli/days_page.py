"""The results of the loop over days: a table, a page and a picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from dlrm_jax.cli.page import Page, check_file, check_own
from dlrm_jax.cli.pictures import COLOURS, legend_beside, new_grid, percent
from dlrm_jax.config import Config
from dlrm_jax.daily import JOURNAL, Entry
from dlrm_jax.errors import UserError
from dlrm_jax.files import replacing
from dlrm_jax.text_table import text_table
from dlrm_jax.training.config_data import OF_DATA
from dlrm_jax.training.model import unread

_PAGE, _PICTURE = "days.html", "days.svg"
_METRICS = {
    "auc": "AUC",
    "log_loss": "log loss",
    "normalized_entropy": "NE",
    "calibration": "calibration",
}
_MODELS = {"updated": "updated", "not_updated": "first day's"}
_DRAWN = ("auc", "normalized_entropy", "calibration")


def printed(days: Sequence[Entry]) -> str:
    """The tables of all days, and a sentence on what updates are worth."""
    tables = [text_table(*_ids(days), left=(0, 1)), text_table(*_metrics(days))]
    return "\n\n".join([*tables, told(days)])


def told(days: Sequence[Entry]) -> str:
    """A sentence on whether updates were better than none, over the days after the first."""
    later = days[1:]
    if not later:
        return "the model of the first day has no update yet: the comparison begins with the second"
    parts = []
    for metric, sign in (("auc", 1), ("log_loss", -1)):
        pairs = [(day["updated"][metric], day["not_updated"][metric]) for day in later]
        known = [pair for pair in pairs if None not in pair]  # a class may be missing
        better = sum(sign * x > sign * y for x, y in known)
        means = [sum(values) / len(known) for values in zip(*known, strict=True)]
        numbers = f" (mean {means[0]:.5f} against {means[1]:.5f})" if known else ""
        parts.append(f"{better} of {len(known)} days by {_METRICS[metric]}{numbers}")
    return f"the updated model was better than the first day's on {' and '.join(parts)}"


def check_replaced(workdir: Path) -> None:
    """Checks that `write_page` would replace nothing but what it wrote.

    Raises:
        UserError: a user's file, or a directory, has one of the names.
    """
    page, picture = workdir / _PAGE, workdir / _PICTURE
    check_own(page)
    check_file(picture)
    # The loop writes its journal first. It refuses one of something else before it writes.
    if picture.exists() and not (workdir / JOURNAL).exists():
        raise UserError(
            f"{picture} exists, and there is no {JOURNAL} of the loop that would have made it; "
            f"move it or rename it"
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
    page.table(*_ids(days))
    page.table(*_metrics(days))
    page.heading("Config")
    page.table(["setting", "value"], _settings(config), texts=2)
    page.write(workdir / _PAGE)
    with replacing(workdir / _PICTURE) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def _ids(days: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of rows and ids."""
    header = ["day", "tested on", "rows", "rows of the test", "new ids"]
    header += [f"unknown ids, {name}" for name in _MODELS.values()]
    rows = [
        [
            day["day"],
            day["tested_on"],
            f"{day['rows']:,}",
            f"{day['test_rows']:,}",
            "" if day["new_ids"] is None else percent(day["new_ids"]),
            *(percent(day["unknown_ids"][model]) for model in _MODELS),
        ]
        for day in days
    ]
    return header, rows


def _metrics(days: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of metrics."""
    pairs = [(metric, model) for metric in _METRICS for model in _MODELS]
    header = ["tested on", *(f"{_METRICS[x]}, {_MODELS[model]}" for x, model in pairs)]
    rows = [[day["tested_on"], *(_number(day[model][x]) for x, model in pairs)] for day in days]
    return header, rows


def _settings(config: Config) -> list[list[str]]:
    """Names and values of what the config reads."""
    left_out = unread(config)
    fields = {x: y for x, y in dataclasses.asdict(config).items() if x not in left_out}
    of_data = {*OF_DATA, "examples", "zipf_exponent", "teacher", "min_count"}
    return [
        [name, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
        for name, value in fields.items()
        if name not in of_data and value not in ((), "")
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"  # none where a class is missing


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
