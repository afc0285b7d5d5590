"""A directory of arrays by day in TorchRec's layout, described by ``metadata.json``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np

from dlrm_jax.data.arrays import Dataset, Split
from dlrm_jax.data.day_files import DayFiles
from dlrm_jax.data.formats.compression import sampled_hash
from dlrm_jax.data.id_ranges import Ranges, find_ranges
from dlrm_jax.data.memory import content_hashes
from dlrm_jax.errors import UserError
from dlrm_jax.files import read_json

FORMAT = 2
"""Number of the format. It changes with the layout on disk and with the meaning of its numbers."""

METADATA = "metadata.json"
VOCABULARIES = "vocabularies"


@dataclasses.dataclass(frozen=True)
class Metadata:
    """The description of a directory of arrays.

    Attributes:
        made_from: format, input files (path, size, time of change, hash of 4 MiB) and
            options.
        content_hashes: hash of each input file.
        fingerprint: hash of data and options, as in `Dataset`.
        days: rows of each day.
        splits: rows of each split, by name: lists of [day, first row in it, row after the last].
        columns: names of the categorical columns.
        table_rows: rows of each table, as in `Dataset`.
        bag_lengths: ids per example of each feature, as in `Dataset`.
        missing: number of examples without a value, by dense and categorical column.
        skipped_lines: number of malformed lines that were left out.
        dropped_negatives: number of examples with label 0 that were left out.
        smallest: smallest number in the dense columns of each file.
        grown_from: fingerprints of the data whose vocabularies these continue, oldest first.
        versions: version of each library that made the arrays.
        id_ranges: notes of the files of ids, see `id_ranges`; empty in earlier versions.
        dates: first and last date of the rows; empty without times, and in earlier versions.
        times: first and last time of each split that has rows; empty as for the dates.
    """

    made_from: dict[str, Any]
    content_hashes: list[str]
    fingerprint: str
    days: list[int]
    splits: dict[str, list[list[int]]]
    columns: list[str]
    table_rows: list[int]
    bag_lengths: list[int]
    missing: dict[str, int]
    skipped_lines: int
    dropped_negatives: int
    smallest: list[float]
    grown_from: list[str]
    versions: dict[str, str]
    id_ranges: dict[str, Any] = dataclasses.field(default_factory=dict)
    dates: list[str] = dataclasses.field(default_factory=list)
    times: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> Metadata:
        """Reads the description of a directory.

        Raises:
            UserError: there is none, it has another format, or it is damaged.
        """
        path = directory / METADATA
        try:
            fields = read_json(path)
            found = fields["made_from"]["format"]
            if found == FORMAT:
                metadata = cls(**fields)
                metadata._check()
                return metadata
        except (OSError, ValueError, TypeError, KeyError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(
                f"{directory} isn't a directory of prepared data: cannot read {path}: {why}"
            ) from error
        raise UserError(
            f"{directory} has format {found}, this program reads {FORMAT}; prepare the data again"
        )

    @property
    def shared(self) -> dict[str, str]:
        """Columns that have the vocabulary of another one, by name; see `Schema`."""
        schema = self.made_from["options"].get("schema")
        return schema.get("shared", {}) if isinstance(schema, dict) else {}

    @property
    def bins(self) -> dict[str, int]:
        """Columns of numbers whose ids are bins; see `Schema`."""
        schema = self.made_from["options"].get("schema")
        return schema.get("bins", {}) if isinstance(schema, dict) else {}

    @property
    def groups(self) -> list[str]:
        """Columns that group examples; see `Schema`."""
        schema = self.made_from["options"].get("schema")
        return schema.get("groups", []) if isinstance(schema, dict) else []

    @property
    def kept_negatives(self) -> dict[str, float]:
        """Share of the examples of label 0 that were kept, by split; see `Dataset`."""
        options = self.made_from["options"]
        kept = 1 - float(options.get("drop_negatives", 0))
        if kept == 1:
            return {}
        # As its program does it.
        of_all = options.get("compatible") == "reference"
        return dict.fromkeys(list(self.splits) if of_all else ["train"], kept)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels, as in `Dataset`."""
        schema = self.made_from["options"].get("schema")
        names = schema.get("label", "label") if isinstance(schema, dict) else "label"
        return tuple(names) if isinstance(names, list) else (names,)

    def vocabulary_of(self, column: int) -> int:
        """The column whose vocabulary a categorical column has: itself, or one that it shares."""
        number = self.columns.index
        return {number(x): number(y) for x, y in self.shared.items()}.get(column, column)

    def _check(self) -> None:
        """Checks types, and that the parts fit each other; it may come from someone else."""
        for name, kind in get_type_hints(Metadata).items():
            if not _is_of(getattr(self, name), kind):
                raise TypeError(f"{name}: expected {kind}, got {getattr(self, name)!r}")
        for file in self.made_from["inputs"]:
            if not _is_of(file, dict[str, Any]) or not _is_of(file["path"], str):
                raise TypeError(f"inputs: expected files with a path, got {file!r}")
        if not _is_of(self.made_from["options"], dict[str, Any]):
            raise TypeError(f"options: expected an object, got {self.made_from['options']!r}")
        if not len(self.columns) == len(self.table_rows) == len(self.bag_lengths):
            raise ValueError("columns, table_rows and bag_lengths differ in length")
        if unknown := set(self.columns) - self.missing.keys():
            raise ValueError(f"missing: there is no column {min(unknown)!r}")
        if not _is_of(self.groups, list[str]):
            raise TypeError(f"groups: expected names of columns, got {self.groups!r}")
        dropped = self.made_from["options"].get("drop_negatives", 0)
        if not (type(dropped) in (int, float) and 0 <= dropped < 1):
            raise ValueError(f"drop_negatives: expected a number below 1, got {dropped!r}")
        if not _is_of([*self.labels], list[str]) or not self.labels:
            raise TypeError(f"label: expected names of columns, got {self.labels!r}")
        if not _is_of(self.shared, dict[str, str]):
            raise TypeError(f"shared: expected names of columns, got {self.shared!r}")
        if not _is_of(self.bins, dict[str, int]):
            raise TypeError(f"bins: expected numbers of bins, got {self.bins!r}")
        rows_of = dict(zip(self.columns, self.table_rows, strict=True))
        for name, owner in self.shared.items():
            if owner in self.shared or rows_of[name] != rows_of[owner]:
                raise ValueError(f"shared: {name!r} can't share the vocabulary of {owner!r}")
        if any(len(times) != 2 for times in self.times.values()):
            raise ValueError(f"times: expected the first and the last, got {self.times}")
        for name in ("train", "validation", "test"):
            for rows in self.splits[name]:
                day, start, stop = rows
                if not (0 <= day < len(self.days) and 0 <= start <= stop <= self.days[day]):
                    raise ValueError(f"split {name}: there are no rows {rows}")


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a type."""
    inner = get_args(kind)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_is_of(each, inner[0]) for each in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_is_of(each, inner[1]) for each in value.values())
    return kind is Any or type(value) is kind or (kind is float and type(value) is int)


def check_unchanged(directory: Path, fingerprint: str) -> None:
    """Checks that what has been read of a directory belongs together.

    Call it after the last of several files: another process may replace the directory meanwhile.

    Raises:
        UserError: the directory's fingerprint is another one now.
    """
    if Metadata.read(directory).fingerprint != fingerprint:
        raise UserError(f"{directory} was replaced by other data meanwhile; start again")


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
