"""Applies the rule of the split that options have."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from dlrm_jax.data.preprocessing import freshness, splits
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.splits import Day
from dlrm_jax.data.preprocessing.staging import Staged
from dlrm_jax.data.preprocessing.time_split import by_time
from dlrm_jax.errors import UserError

_log = logging.getLogger(__name__)


def with_split(options: Options, held_out: int, directories: Sequence[Path]) -> Options:
    """The options with the rule of the split that is meant if none is given."""
    if held_out and options.split not in ("", "files"):
        raise UserError(
            f"split: files for validation and test are the split, got {options.split!r}, too; "
            f"leave one out"
        )
    if held_out:
        return dataclasses.replace(options, split="files")
    if options.split == "files":
        raise UserError("split: files needs --test=FILE, with --validation=FILE or without it")
    if not options.split and options.rule.kind == "time":
        for directory in directories:
            if freshness.is_split_by_earlier_versions(directory):
                _log.warning(
                    "%s is split as earlier versions did, and stays so: --split=days", directory
                )
                return dataclasses.replace(options, split="days")
    return options


def is_known_by_row(options: Options) -> bool:
    """Whether it is known of each row, while it is read, whether it is for training."""
    return options.rule.by_row or options.rule.kind == "none"


def make_splits(
    days: Sequence[Day], files: Sequence[Staged], options: Options, held_out: int
) -> splits.Splits:
    """The rows of each split; the last files are held out, so many of them.

    Raises:
        UserError: there are none for training, or none where the rule gives a split a share.
    """
    rule = options.rule
    if rule.kind == "files":
        return splits.by_file(days, len(files), held_out)
    if rule.kind == "days":
        return splits.by_day(days)
    splits.check_not_empty(days)
    if rule.kind == "none":
        return splits.for_training(days)
    if rule.kind == "time":
        return by_time(days, files, rule, bool(options.schema.timestamp))
    split = splits.by_part(days)
    counts = {name: splits.rows_of(split, name) for name in split}
    wanted = ["train"]
    if rule.is_random:
        sizes = zip(("validation", "test"), rule.sizes, strict=True)
        wanted += [name for name, size in sizes if size]
    if empty := [name for name in wanted if not counts[name]]:
        found = ", ".join(f"{count} for {name}" for name, count in counts.items())
        hint = "; give larger shares, or another --seed" if rule.is_random else ""
        if rule.kind == "user":
            hint += f"; rows without a value of {rule.column} train"
        raise UserError(f"--split={rule}: expected rows for {empty[0]}, got {found}{hint}")
    return split


def make_days(paths: Sequence[Path], files: Sequence[Staged], options: Options) -> list[Day]:
    """The days of files.

    Raises:
        UserError: times go back; or negatives are left out, and the last file isn't the last day.
    """
    if not options.schema.timestamp:
        if len(files) == 1 and options.rule.kind in ("days", "time"):
            return splits.even_days(files[0].rows)
        return [Day(number, file.ranges) for number, file in enumerate(files)]
    days = splits.days_by_date(paths, files)
    last = {day.date for day in days if day.file == len(files) - 1}
    earlier = {day.date for day in days if day.file < len(files) - 1}
    by_day = options.rule.kind == "days"
    if options.drop_negatives and by_day and (len(last) > 1 or last & earlier):
        raise UserError(
            "drop_negatives: negative examples are left out file by file, and the last file isn't "
            "just the last day; give files for validation and test"
        )
    return days
