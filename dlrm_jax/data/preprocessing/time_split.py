"""Splits by time: the last rows for test, those before them for validation."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

import polars as pl

from dlrm_jax.data.preprocessing.split_rule import SplitRule
from dlrm_jax.data.preprocessing.splits import Day, Splits, between
from dlrm_jax.data.preprocessing.staging import Staged
from dlrm_jax.errors import UserError


def by_time(days: Sequence[Day], files: Sequence[Staged], rule: SplitRule, timed: bool) -> Splits:
    """Splits rows that are in the order of time.

    Sizes in days count dates, files, or the parts of a single file. Sizes in shares count rows;
    rows of one time lie in one split, so these sizes are met as nearly as that allows.

    Args:
        days: days of all rows.
        files: files of the days.
        rule: rule with the two sizes.
        timed: whether the rows have times.

    Raises:
        UserError: a split would be empty.
    """
    total = sum(map(len, days))
    if rule.in_days:
        starts = [*_starts(days), total]
        validation, test = map(int, rule.sizes)
        if len(starts) - 1 <= validation + test:
            raise UserError(
                f"--split={rule}: expected more than {validation + test} days, so that some are "
                f"for training, got {len(starts) - 1}; give shares, such as --split=time:0.1,0.1"
            )
        edges = [starts[-1 - test - validation], starts[-1 - test]]
    else:
        validation, test = (max(1, round(total * size)) if size else 0 for size in rule.sizes)
        edges = [total - test - validation, total - test]
        if timed:
            edges = [_between_times(files, edge) if 0 < edge < total else edge for edge in edges]
    sizes = [edges[0], edges[1] - edges[0], total - edges[1]]
    wanted = [True, *(size > 0 for size in rule.sizes)]
    if any(size < 1 for size, needed in zip(sizes, wanted, strict=True) if needed):
        hint = " (rows of one time stay together)" if timed and not rule.in_days else ""
        raise UserError(
            f"--split={rule}: expected rows for each split, got {sizes[0]} for training, "
            f"{sizes[1]} for validation, {sizes[2]} for test{hint}; give "
            f"larger shares, --split=days, which halves the last day, or --split=fraction"
        )
    return {
        "train": between(days, 0, edges[0]),
        "validation": between(days, *edges),
        "test": between(days, edges[1], total),
    }


def _starts(days: Sequence[Day]) -> list[int]:
    """The first row of each day; a date that several files share is one day."""
    starts, row = [], 0
    for number, day in enumerate(days):
        if not number or day.date is None or day.date != days[number - 1].date:
            starts.append(row)
        row += len(day)
    return starts


def _between_times(files: Sequence[Staged], edge: int) -> int:
    """The row nearest to another one whose time differs from that of the row before."""
    stops = list(itertools.accumulate(file.rows for file in files))
    number = bisect.bisect_right(stops, edge)
    row = edge - (stops[number] - files[number].rows)
    time = files[number].scan().select("time").slice(row, 1).collect().item()
    column = pl.col("time")
    counts = [
        other.scan().select((column < time).sum().alias("earlier"), (column <= time).sum())
        for other in files
    ]
    found = [count.collect(engine="streaming").row(0) for count in counts]
    earlier, until = (sum(row[i] for row in found) for i in range(2))
    return earlier if edge - earlier <= until - edge else until
