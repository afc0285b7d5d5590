"""A directory of arrays by day in TorchRec's layout, described by ``metadata.json``."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dlrm_jax.data.arrays import Dataset, Split
from dlrm_jax.data.day_files import DayFiles
from dlrm_jax.data.formats.compression import sampled_hash
from dlrm_jax.data.id_ranges import Ranges, find_ranges
from dlrm_jax.data.memory import content_hashes
from dlrm_jax.data.metadata import METADATA, VOCABULARIES, Metadata, check_unchanged
from dlrm_jax.errors import UserError


class Findings(NamedTuple):
    """What reading all files of a directory has told, as JSON: one process finds it for others.

    Attributes:
        id_ranges: ranges of the ids, see `id_ranges`.
        fingerprints: fingerprint of the data, then the earlier ones, as in `Dataset`.
    """

    id_ranges: Ranges
    fingerprints: list[str]

    @classmethod
    def of(cls, data: Dataset) -> Findings:
        """What was found when a directory was loaded."""
        assert data.id_ranges is not None
        return cls(data.id_ranges, [data.fingerprint, *data.earlier_fingerprints])


def load_directory(directory: Path | str, findings: Findings | None = None) -> Dataset:
    """Maps the arrays of a directory into memory, read-only.

    Args:
        directory: directory made by `preprocessing`, or by TorchRec's or MLPerf's scripts; see
            `DayFiles`. Without ``metadata.json`` the last day is halved as TorchRec does it: the
            first half is for validation, the second for test. Bag lengths then follow from the
            shapes of the arrays, and rows of tables from the largest ids.
        findings: findings of process 0; without them, all files may be read.

    Raises:
        UserError: arrays are missing, cut short or don't fit each other or the description, or
            another process replaces the directory meanwhile.
    """
    directory = Path(directory)
    if not (directory / METADATA).exists():
        return _load_torchrec(directory, findings)
    metadata = Metadata.read(directory)
    days, bag_lengths = map_days(directory, metadata), metadata.bag_lengths
    id_ranges = (
        findings.id_ranges
        if findings
        else find_ranges(directory, days, bag_lengths, metadata.id_ranges)
    )
    check_unchanged(directory, metadata.fingerprint)
    inputs = ", ".join(file["path"] for file in metadata.made_from["inputs"])
    return Dataset(
        train=_split(days, metadata.splits["train"]),
        validation=_split(days, metadata.splits["validation"]),
        test=_split(days, metadata.splits["test"]),
        table_rows=tuple(metadata.table_rows),
        bag_lengths=tuple(bag_lengths),
        fingerprint=metadata.fingerprint,
        source=f"{sum(metadata.days):,} examples of {inputs}, prepared in {directory}",
        directory=directory,
        id_ranges=id_ranges,
        columns=tuple(metadata.columns),
        shared=metadata.shared,
        kept_negatives=metadata.kept_negatives,
        labels=metadata.labels,
    )


def map_days(directory: Path, metadata: Metadata) -> list[DayFiles]:
    """The files of each day of a prepared directory.

    Raises:
        UserError: arrays are missing, cut short or don't fit each other or the description.
    """
    days = [
        DayFiles.map(directory, number, metadata.groups) for number in range(len(metadata.days))
    ]
    sizes = [len(day.examples) for day in days]
    if sizes != metadata.days:
        raise UserError(
            f"{directory}: the days have {sizes} rows, its {METADATA} says {metadata.days}; "
            f"prepare the data again"
        )
    for day in days:
        day.check_bags(metadata.bag_lengths, METADATA)
        if any(bags.dtype != np.int32 for bags in day.id_arrays):
            raise UserError(f"{day.path}: expected int32 ids beside a {METADATA}, got int64")
    return days


def _load_torchrec(directory: Path, findings: Findings | None) -> Dataset:
    names = [re.fullmatch(r"day_([0-9]+)_dense\.npy", path.name) for path in directory.iterdir()]
    numbers = sorted(int(name[1]) for name in names if name)
    unfinished = directory.suffix == ".partial" or (directory / VOCABULARIES).exists()
    if len(numbers) < 2 or numbers != list(range(len(numbers))) or unfinished:
        raise UserError(
            f"{directory}: expected a {METADATA}, or the arrays of two days or more and nothing "
            f"else (day_0_dense.npy, day_0_sparse.npy or day_0_sparse_multi_hot.npz, "
            f"day_0_labels.npy, day_1_…), found days {', '.join(map(str, numbers)) or 'none'}"
        )
    days = [DayFiles.map(directory, number) for number in numbers]
    first = days[0]
    widths = [bags.shape[1] for bags in first.id_arrays]
    bag_lengths = widths if first.multi_hot else [1] * widths[0]
    for day in days:
        day.check_bags(bag_lengths, first.path.name)
    files = sorted(directory.glob("day_*.np[yz]"))
    if findings is None:
        id_ranges = find_ranges(directory, days, bag_lengths, {})
        findings = Findings(id_ranges, _fingerprints(directory, files))
    elif _of_samples(files) != findings.fingerprints[-1]:
        raise UserError(
            f"{directory} has other arrays here than in process 0; give all processes the same data"
        )
    id_ranges, fingerprints = findings
    last, rows = len(days) - 1, len(days[-1].examples)
    middle = (rows + 1) // 2
    examples = sum(len(day.examples) for day in days)
    return Dataset(
        train=Split(tuple(day.examples for day in days[:-1])),
        validation=_split(days, [[last, 0, middle]]),
        test=_split(days, [[last, middle, rows]]),
        table_rows=tuple(1 + max(largest, 0) for _, largest in id_ranges),
        bag_lengths=tuple(bag_lengths),
        fingerprint=fingerprints[0],
        earlier_fingerprints=tuple(fingerprints[1:]),
        source=f"{examples:,} examples in {len(days)} days of arrays in {directory}",
        id_ranges=id_ranges,
    )


def _fingerprints(directory: Path, files: list[Path]) -> list[str]:
    """The fingerprint of arrays without a description, then those that earlier versions had."""
    notes = content_hashes(directory, files)
    # Earlier versions hashed times, which a copy doesn't keep, or 4 MiB of each file.
    stats = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    contents = [[path.name, notes[path.name]["content"]] for path in files]
    return [_hash(contents), _hash(stats), _of_samples(files)]


def _of_samples(files: list[Path]) -> str:
    return _hash([[path.name, sampled_hash(path)] for path in files])


def _hash(content: list[Any]) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()


def _split(days: list[DayFiles], rows: list[list[int]]) -> Split:
    return Split(tuple(days[day].examples[start:stop] for day, start, stop in rows))
