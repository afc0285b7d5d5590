"""The description of a directory of arrays, ``metadata.json``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

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


_COLUMNS_OF = "columns of "


def of_columns(fingerprint: str) -> str:
    """The fingerprint of a data set's columns as two towers read them.

    Predictions would read all columns in the order of the data, so they must see other data.
    """
    return f"{_COLUMNS_OF}{fingerprint}"


def of_data(fingerprint: str) -> str:
    """The fingerprint of the data whose ids a model's tables have, also where it reads columns."""
    return fingerprint.removeprefix(_COLUMNS_OF)


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
