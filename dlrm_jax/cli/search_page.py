"""The results of a search: a table for the terminal and for files, and a page with pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dlrm_jax.cli.page import Page
from dlrm_jax.cli.pictures import COLOURS, FILLS, bars, new_axes, new_grid, short
from dlrm_jax.data.formats.parquet import writing
from dlrm_jax.files import replacing
from dlrm_jax.search.findings import Finding
from dlrm_jax.search.space import Dimension, Space, shown
from dlrm_jax.text_table import text_table

_PRINTED = 20
_PER_ROW = 3


def printed(findings: Sequence[Finding], space: Space, metric: str) -> str:
    """The best trials as a table of text, and what became of the others."""
    header, rows = _cells(findings[:_PRINTED], space, metric)
    lines = [text_table(header, rows, left=(1,))]
    if len(findings) > _PRINTED:
        lines.append(f"and {len(findings) - _PRINTED} others")
    lines.append(counted(findings))
    lines += [f"{count} {text}" for text, count in reasons(findings).items()]
    return "\n".join(lines)


def counted(findings: Sequence[Finding]) -> str:
    """The number of trials by outcome: ``7 trials: 5 complete, 2 pruned``."""
    outcomes = [each.outcome for each in findings]
    parts = [f"{outcomes.count(each)} {each}" for each in dict.fromkeys(outcomes)]
    return f"{len(findings)} trials: {', '.join(parts)}"


def reasons(findings: Sequence[Finding]) -> dict[str, int]:
    """The errors of trials without a result, each with their number, the most frequent first."""
    texts = [f"{each.outcome}: {each.reason}" for each in findings if each.reason]
    found = {text: texts.count(text) for text in dict.fromkeys(texts)}
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def write_tables(findings: Sequence[Finding], space: Space, metric: str, directory: Path) -> None:
    """Writes all trials to ``trials.parquet`` and ``trials.csv``."""
    columns: dict[str, Sequence[object]] = {
        "trial": [each.number for each in findings],
        "outcome": [each.outcome for each in findings],
        metric: [each.metric for each in findings],
        "step": [each.step for each in findings],
        "steps": [each.steps for each in findings],
        "seconds": [each.seconds for each in findings],
    }
    # A setting called as another column would be lost.
    for name in space.names:
        key = f"setting {name}" if name in columns else name
        columns[key] = [each.values.get(name) for each in findings]
    columns["reason"] = [each.reason or None for each in findings]
    frame = pl.DataFrame(columns, strict=False)
    for name, write in (("trials.parquet", frame.write_parquet), ("trials.csv", frame.write_csv)):
        with replacing(directory / name) as temporary, writing(directory / name):
            write(temporary)


def write_page(
    findings: Sequence[Finding],
    space: Space,
    metric: str,
    importances: Mapping[str, float],
    path: Path,
) -> None:
    """Writes one HTML page with all trials and pictures of what mattered."""
    page = Page("Search")
    page.text(f"{counted(findings)}. The metric is validation {metric}, at a trial's best step.")
    page.heading("What mattered")
    if importances:
        page.text(
            "The share of each setting in what sets the best complete trials apart: the best "
            "tenth, but at least five. It is computed by PED-ANOVA."
        )
        page.picture(bars(importances, "share"), "bars: the importance of each setting")
    else:
        page.text("Importances need ten complete trials with different results.")
    with_metric = [each for each in findings if each.metric is not None]
    if with_metric:
        page.heading("Values and results")
        page.text(
            f"Each point is a trial, its height the {metric}. Circles are complete trials, and "
            f"crosses those that ended early or still run. The ring marks the best one."
        )
        page.picture(_values(with_metric, space, metric), f"points: {metric} by each setting")
        page.heading("In the order of the trials")
        page.picture(_history(with_metric, metric), f"points: {metric} by trial")
    page.heading("All trials")
    header, rows = _cells(findings, space, metric, reason=True)
    page.table(header, rows, texts=2)
    page.write(path)


def _cells(
    findings: Sequence[Finding], space: Space, metric: str, reason: bool = False
) -> tuple[list[str], list[list[str]]]:
    header = ["trial", "outcome", metric, "step", "seconds", *space.names]
    rows = [
        [
            str(each.number),
            each.outcome,
            "" if each.metric is None else f"{each.metric:.5f}",
            "" if each.step is None else f"{each.step:,}",
            "" if each.seconds is None else f"{each.seconds:,.0f}",
            *(shown(each.values.get(name)) for name in space.names),
        ]
        for each in findings
    ]
    if reason and any(each.reason for each in findings):
        header = [*header, "reason"]
        rows = [[*row, each.reason] for row, each in zip(rows, findings, strict=True)]
    return header, rows


def _values(findings: Sequence[Finding], space: Space, metric: str) -> Figure:
    """A picture for each setting: its values and the metric."""
    count = len(space.names)
    columns = min(_PER_ROW, count)
    rows = math.ceil(count / columns)
    figure, grid = new_grid(2.6 * rows, rows, columns)
    for axes, dimension in zip(grid, space, strict=False):
        points = [each for each in findings if dimension.name in each.values]
        at = {each.number: _place(dimension, each) for each in points}
        _draw(axes, [(at[each.number], each) for each in points], findings[0])
        _draw_values(axes, dimension)
        axes.set_xlabel(short(dimension.name))
        axes.set_ylabel(metric)
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure


def _draw_values(axes: Axes, dimension: Dimension) -> None:
    """The axis of a setting, as long as the space."""
    if dimension.choices:
        names = [short(each) for each in dimension.choices]
        turned = {"rotation": 25, "ha": "right"} if sum(map(len, names)) > 24 else {}
        axes.set_xticks(range(len(names)), names, parse_math=False, **turned)
        axes.set_xlim(-0.5, len(names) - 0.5)
    elif dimension.log:
        axes.set_xscale("log")
        decades = math.log10(dimension.high / dimension.low)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        margin = 10 ** (0.04 * decades)
        axes.set_xlim(dimension.low / margin, dimension.high * margin)
    else:
        margin = 0.04 * (dimension.high - dimension.low)
        axes.set_xlim(dimension.low - margin, dimension.high + margin)


def _history(findings: Sequence[Finding], metric: str) -> Figure:
    figure, axes = new_axes(2.4)
    _draw(axes, [(each.number, each) for each in findings], findings[0])
    axes.set_xlabel("trial")
    axes.set_ylabel(metric)
    return figure


def _draw(axes: Axes, points: Sequence[tuple[float, Finding]], best: Finding) -> None:
    """Points of trials, with a ring around the best one."""
    for marker, colour, is_complete in (("x", FILLS[1], False), ("o", FILLS[0], True)):
        some = [(x, each) for x, each in points if (each.outcome == "complete") == is_complete]
        x, y = [x for x, _ in some], [_height(each) for _, each in some]
        axes.scatter(x, y, s=18, c=colour, marker=marker)
    for x, each in points:
        if each is best and each.outcome == "complete":
            axes.scatter([x], [_height(each)], s=90, facecolors="none", edgecolors=COLOURS[1])


def _height(finding: Finding) -> float:
    return math.nan if finding.metric is None else finding.metric


def _place(dimension: Dimension, finding: Finding) -> float:
    value = finding.values[dimension.name]
    return dimension.choices.index(str(value)) if dimension.choices else float(value)
