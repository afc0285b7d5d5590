"""The meaning of a log's columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlrm_jax.data.formats.criteo_text import CATEGORICALS, INTEGERS
from dlrm_jax.data.formats.dialect import Dialect
from dlrm_jax.data.preprocessing.label_threshold import thresholds_of
from dlrm_jax.errors import UserError
from dlrm_jax.feature_names import check_encodable, check_names, check_no_pattern
from dlrm_jax.files import read_json
from dlrm_jax.json_objects import without_repeats

TRANSFORMS = ("log", "none", "standardize", "log_standardize")
LAYOUTS = ("named", "criteo")
_LONGEST_BAG = 1 << 16
_MOST_BINS = 1 << 16


@dataclasses.dataclass(frozen=True)
class Schema:
    """The columns that are used; all others are ignored.

    Attributes:
        label: name of the column with the label, 0 or 1 or a boolean; or names of several, the main
            one first. Then a row may lack some of its labels.
        categorical: names of the categorical columns, of any type that can be compared; a list
            column is a bag of ids.
        dense: names of the numeric columns; missing numbers count as 0.
        bag_lengths: number of a bag's first values that are kept, by list column.
        weight: name of the column with the weight of each example, at least 0; None for weights of
            1.
        timestamp: name of the column with a date, a time, or seconds since 1970 (UTC) or since
            the log began, ascending; days are its dates. None where days are files.
        dense_transform: ``"log"`` for log(max(x, 0) + 1), as for Criteo; ``"none"`` for x;
            ``"standardize"`` and ``"log_standardize"`` for the same minus its mean, divided by its
            standard deviation, over the training rows. One for all dense columns, or some by
            column; the others have the logarithm.
        layout: ``"named"`` for columns of Parquet and CSV, or ``"criteo"`` for its text and binary
            form, which have no names.
        shared: columns whose values are those of another categorical column, by name: the two have
            one vocabulary, ids that mean the same, and one table.
        bins: number of bins, by categorical column of numbers: its ids are bins of about equally
            many training rows.
        groups: names of columns that group examples, such as a request, for metrics and losses.
            By a categorical column that isn't among them, its ids group: unseen values are one.
        label_at_least: smallest number that counts as label 1, by label column; a label that isn't
            named is 0 or 1.
        separator: text between two fields of CSV files.
        header: names of all columns of CSV files, if they have no header line; empty if they have.

    Raises:
        UserError: there is no categorical column, one is named twice, or a name is empty or a
            pattern to Polars.
    """

    label: str | tuple[str, ...]
    categorical: tuple[str, ...]
    dense: tuple[str, ...] = ()
    bag_lengths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    weight: str | None = None
    timestamp: str | None = None
    dense_transform: str | Mapping[str, str] = "log"
    layout: str = "named"
    shared: Mapping[str, str] = dataclasses.field(default_factory=dict)
    bins: Mapping[str, int] = dataclasses.field(default_factory=dict)
    groups: tuple[str, ...] = ()
    label_at_least: Mapping[str, float] = dataclasses.field(default_factory=dict)
    separator: str = ","
    header: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.label, tuple) and len(self.label) < 2:
            raise UserError(
                f"schema: label: expected one name, or a list of two or more, got {self.label!r}"
            )
        for field in ("categorical", "dense", "groups"):
            if not isinstance(getattr(self, field), tuple):
                raise UserError(f"schema: {field} must be a list, got {getattr(self, field)!r}")
        lists = {"label": self.labels, "categorical": self.categorical, "dense": self.dense}
        for field, each in (lists | {"groups": self.groups}).items():
            if "" in each:
                raise UserError(f"schema: {field}: expected names of columns, got ''")
        for field in ("weight", "timestamp"):
            if getattr(self, field) == "":
                raise UserError(f"schema: {field}: expected one name, got ''")
        check_encodable("schema", [*self.columns, *self.groups])
        check_no_pattern("schema", [*self.columns, *self.groups])
        names = self.columns
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"schema: column {twice[0]!r} is named more than once")
        if not self.categorical:
            raise UserError("schema: expected at least one categorical column, got none")
        if not isinstance(self.bag_lengths, Mapping):
            raise UserError(
                f"schema: bag_lengths must be an object of numbers, got {self.bag_lengths!r}"
            )
        unknown = self.bag_lengths.keys() - set(self.categorical)
        if unknown:
            raise UserError(f"schema: bag_lengths names {min(unknown)!r}, which isn't categorical")
        for name, length in self.bag_lengths.items():
            if type(length) is not int or not 1 <= length <= _LONGEST_BAG:
                raise UserError(
                    f"schema: bag_lengths: {name} must be from 1 to {_LONGEST_BAG}, got {length!r}"
                )
        self._check_groups()
        self._check_shared()
        self._check_numbers()
        if self.layout not in LAYOUTS:
            raise UserError(
                f"schema: layout must be one of {', '.join(LAYOUTS)}, got {self.layout!r}"
            )
        thresholds_of(self.label_at_least, self.labels)
        if self.dialect != Dialect() and self.layout != "named":
            raise UserError("schema: separator and header are for the layout named, that of CSV")

    def _check_groups(self) -> None:
        for name in self.groups:
            if name in self.bag_lengths:
                raise UserError(
                    f"schema: groups: expected one value a row of {name!r}, and it has "
                    f"bag_lengths; leave it out"
                )
            is_other = name in self.columns and name not in self.categorical
            if is_other or self.groups.count(name) > 1:
                raise UserError(f"schema: column {name!r} of groups is named more than once")

    def _check_numbers(self) -> None:
        given = self.dense_transform
        named = given if isinstance(given, Mapping) else {}
        if unknown := named.keys() - set(self.dense):
            raise UserError(f"schema: dense_transform names {min(unknown)!r}, which isn't dense")
        for transform in named.values() if isinstance(given, Mapping) else [given]:
            if transform not in TRANSFORMS:
                raise UserError(
                    f"schema: dense_transform must be one of {', '.join(TRANSFORMS)}, or an object "
                    f'of them by column, such as {{"price": "standardize"}}, got {transform!r}'
                )
        if not isinstance(self.bins, Mapping):
            raise UserError(f"schema: bins must be an object of numbers, got {self.bins!r}")
        for name, count in self.bins.items():
            if name not in self.categorical:
                raise UserError(
                    f"schema: bins names {name!r}, which isn't categorical; bins are ids"
                )
            if type(count) is not int or not 2 <= count <= _MOST_BINS:
                raise UserError(
                    f"schema: bins: {name} must be from 2 to {_MOST_BINS}, got {count!r}"
                )
            for field, others in (
                ("bag_lengths", self.bag_lengths),
                ("shared", {*self.shared, *self.shared.values()}),
            ):
                if name in others:
                    raise UserError(
                        f"schema: bins are for a column with one number and ids of its own, but "
                        f"{field} names {name!r}, too"
                    )

    def _check_shared(self) -> None:
        for name, owner in self.shared.items():
            for each in (name, owner):
                if each not in self.categorical:
                    raise UserError(f"schema: shared names {each!r}, which isn't categorical")
            if owner == name:
                raise UserError(f"schema: shared: {name!r} names itself; leave it out")
            if owner in self.shared:
                raise UserError(
                    f"schema: shared: {name!r} names {owner!r}, which has the vocabulary of "
                    f"{self.shared[owner]!r}; name a column with a vocabulary of its own"
                )

    @property
    def owners(self) -> tuple[int, ...]:
        """The column whose vocabulary each categorical column has, as an index of them."""
        return tuple(self.categorical.index(self.shared.get(x, x)) for x in self.categorical)

    def transform_of(self, name: str) -> str:
        """The transform of a dense column."""
        given = self.dense_transform
        return given.get(name, "log") if isinstance(given, Mapping) else given

    @property
    def standardized(self) -> tuple[str, ...]:
        """The dense columns that are standardized."""
        return tuple(x for x in self.dense if self.transform_of(x).endswith("standardize"))

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the columns with labels, one or several."""
        return (self.label,) if isinstance(self.label, str) else self.label

    @property
    def dialect(self) -> Dialect:
        """How CSV files of the log are written."""
        return Dialect(self.separator, self.header)

    @property
    def columns(self) -> list[str]:
        """The names of all columns but those of `groups` alone, which predictions don't need."""
        return [*self.labels, *self.unlabelled_columns]

    @property
    def unlabelled_columns(self) -> list[str]:
        """The names of `columns` but the labels."""
        optional = [name for name in (self.weight, self.timestamp) if name]
        return [*self.dense, *self.categorical, *optional]

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of the columns of numbers, besides labels and weights."""
        return (*self.dense, *self.bins)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Ids per example of each categorical column."""
        return tuple(self.bag_lengths.get(name, 1) for name in self.categorical)

    @classmethod
    def from_json(cls, path: Path) -> Schema:
        """Reads a schema: a JSON object with the attributes as fields.

        Raises:
            UserError: the file can't be read or has other fields, or a categorical column has a
                name that its table can't have.
        """
        try:
            fields = read_json(path, object_pairs_hook=without_repeats)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the schema {path}: {error}") from error
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(fields, dict) or not {"label", "categorical"} <= fields.keys():
            raise UserError(f"schema {path}: expected an object with label and categorical")
        if unknown := fields.keys() - set(names):
            raise UserError(
                f"schema {path} has no field {min(unknown)!r}; its fields are {', '.join(names)}"
            )
        schema = cls.from_fields(fields)
        check_names("schema: categorical", schema.categorical, len(schema.categorical))
        if len(schema.labels) > 1:  # metrics and settings have their names
            check_names("schema: label", schema.labels, len(schema.labels))
        return schema

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Schema:
        """Makes a schema of the fields of a JSON object.

        Raises:
            UserError: a field that must name a column has another type.
        """
        given: dict[str, Any] = dict(fields)
        for field in ("label", "weight", "timestamp", "categorical", "dense", "groups"):
            value = given.get(field)
            kind = str if isinstance(value, list) else str | None
            for name in value if isinstance(value, list) else [value]:
                if not isinstance(name, kind):
                    raise UserError(f"schema: {field}: expected names of columns, got {name!r}")
        if isinstance(given.get("label"), list):
            names = tuple(given["label"])
            given["label"] = names[0] if len(names) == 1 else names
        one = str | tuple
        for field, kind in (("label", one), ("weight", str | None), ("timestamp", str | None)):
            if not isinstance(given.get(field), kind):
                raise UserError(f"schema: {field}: expected one name, got {given.get(field)!r}")
        shared = given.get("shared", {})
        if not isinstance(shared, dict) or not all(isinstance(x, str) for x in shared.values()):
            raise UserError(
                f"schema: shared must be an object with names of columns, such as "
                f'{{"viewed": "item"}}, got {shared!r}'
            )
        for name in ("categorical", "dense", "groups"):
            if isinstance(given.get(name), list):
                given[name] = tuple(given[name])
        given |= dataclasses.asdict(Dialect.from_fields(given))
        if "label_at_least" in given:
            labels = [given["label"]] if isinstance(given["label"], str) else given["label"]
            given["label_at_least"] = thresholds_of(given["label_at_least"], labels)
        return cls(**given)


CRITEO = Schema("label", CATEGORICALS, INTEGERS, layout="criteo")
