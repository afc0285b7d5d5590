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
    rows of one time lie in one split, so that a split may be larger.

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
        edges = [0, _first_of_its_time(files, total - test, timed)]
        edges[0] = _first_of_its_time(files, edges[1] - validation, timed)
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


def _first_of_its_time(files: Sequence[Staged], edge: int, timed: bool) -> int:
    """The first of all rows that have the time of a row; the row itself without times."""
    edge = max(0, edge)  # all rows have one time, and are for test
    if not timed or not 0 < edge < sum(file.rows for file in files):
        return edge
    stops = list(itertools.accumulate(file.rows for file in files))
    number = bisect.bisect_right(stops, edge)
    row = edge - (stops[number] - files[number].rows)
    time = files[number].scan().select("time").slice(row, 1).collect().item()
    # File by file: Polars counts in 32 bits.
    counts = [file.scan().select((pl.col("time") < time).sum()) for file in files]
    return sum(count.collect(engine="streaming").item() for count in counts)
