"""Statistics of prepared data: examples by day, and the lookups of each table's rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from jaxtyping import Int64

from dlrm_jax.data.arrays import ABSENT, Dataset, Examples
from dlrm_jax.data.check import check_ids, check_labels
from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.special_ids import UNSEEN

_CHUNK_ROWS = 1 << 16


@dataclass(frozen=True)
class Day:
    """One day of the data.

    Attributes:
        by_split: number of examples that the day gives to each split, 0 included.
        positives: number of examples with label 1, or one above 1/2; the main label's, of several.
        labelled: number of examples that have each label and of those with label 1, by its name,
            if there are several labels.
    """

    by_split: Mapping[str, int]
    positives: int
    labelled: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def examples(self) -> int:
        """The number of examples in all splits."""
        return sum(self.by_split.values())

    @property
    def label_rate(self) -> float:
        """The share of positives among the examples that have the label; NaN without any."""
        having = next((having for having, _ in self.labelled.values()), self.examples)
        return self.positives / having if having else float("nan")


@dataclass(frozen=True)
class Column:
    """One categorical column and its table, or a table with all columns that share it.

    Attributes:
        name: name in the metadata; C1, C2 and so on without metadata. Of several columns, all
            names.
        bag_length: largest number of ids per example.
        mean_ids: mean number of ids per example over all days, `ABSENT` not counted.
        occurrences: number of lookups of each row of the table in the training split, by all
            columns that share it.
        unseen: share of each day's lookups whose values aren't in the vocabulary, NaN on a day
            without lookups; None where no id is known to represent such values.
        table: name of the column that the table belongs to.
    """

    name: str
    bag_length: int
    mean_ids: float
    occurrences: Int64[np.ndarray, " R"]
    unseen: tuple[float, ...] | None
    table: str = ""

    @property
    def rows(self) -> int:
        """The number of rows of the table, R."""
        return len(self.occurrences)

    @property
    def touched(self) -> int:
        """The number of rows that the training split looks up at least once."""
        return len(self.descending)

    @cached_property
    def descending(self) -> Int64[np.ndarray, " T"]:
        """The occurrences of the touched rows, in descending order."""
        # Memory of rows that nothing looks up is never touched here: one damaged id makes a table
        # of two billion rows. Most others have equal counts, which slows np.partition down.
        return np.sort(self.occurrences[np.flatnonzero(self.occurrences)])[::-1]

    def served_by_hottest(self, share: float) -> float:
        """The share of the training lookups that the most frequent rows serve; NaN without lookups.

        These rows are a share of the table, above 0 and at most 1, rounded up to one row.
        """
        if not self.touched:
            return float("nan")
        hottest = self.descending[: max(1, round(share * self.rows))]
        return int(hottest.sum()) / int(self.descending.sum())


@dataclass(frozen=True)
class Statistics:
    """The statistics of a data set.

    Attributes:
        days: statistics by day, in the order of time.
        columns: statistics of the categorical columns.
        missing: share of all examples without a value, by dense and categorical column; None
            without metadata.
    """

    days: tuple[Day, ...]
    columns: tuple[Column, ...]
    missing: Mapping[str, float] | None

    def sharing(self) -> list[list[Column]]:
        """The columns of each table, in the order of the columns that the tables belong to."""
        tables = [column.name for column in self.columns if column.table == column.name]
        return [[x for x in self.columns if x.table == table] for table in tables]

    @property
    def tables(self) -> tuple[Column, ...]:
        """The tables, each with the lookups of all its columns."""
        return tuple(
            replace(
                columns[0],
                name=", ".join(column.name for column in columns),
                bag_length=sum(column.bag_length for column in columns),
                mean_ids=sum(column.mean_ids for column in columns),
                unseen=columns[0].unseen if len(columns) == 1 else None,
            )
            for columns in self.sharing()
        )


def measure(dataset: Dataset, metadata: Metadata | None) -> Statistics:
    """Counts examples and lookups in one pass over the data.

    Memory is a chunk of rows, and 8 bytes for each row of a table that is looked up, or that is
    within a page of memory of one; 16 once they are sorted.

    Args:
        dataset: the data; the arrays may be memory maps.
        metadata: description of the same data; None if there is none. Then the days are those of
            the training split, and one more for validation and test.

    Raises:
        UserError: an id isn't a row of its table, or a label or weight is out of range.
    """
    names = dataset.columns
    tables = [dataset.shared.get(name, name) for name in names]
    number_of_days = len(metadata.days) if metadata else len(dataset.train.days) + 1
    examples = {name: np.zeros(number_of_days, np.int64) for name in dataset.splits}
    labelled = np.zeros((number_of_days, 2, len(dataset.labels)), np.int64)
    lookups, unseen = np.zeros((2, len(names), number_of_days), np.int64)
    of_table = {x: np.zeros(n, np.int64) for x, n in zip(tables, dataset.table_rows, strict=True)}
    occurrences = [of_table[table] for table in tables]
    edges = np.cumsum([0, *dataset.bag_lengths]).tolist()

    for name, split in dataset.splits.items():
        check_labels(split, name, soft=True, labels=dataset.labels)
    for split, day, chunk in _chunks(dataset, metadata):
        examples[split][day] += len(chunk)
        labels = np.asarray(chunk.labels).reshape(len(chunk), -1)
        labelled[day] += np.count_nonzero([~np.isnan(labels), labels > 0.5], axis=1)
        all_ids = np.asarray(chunk.ids)
        for i, counts in enumerate(occurrences):
            ids = all_ids[:, edges[i] : edges[i + 1]].ravel()
            if ids.min() < ABSENT or ids.max() >= len(counts):
                # Reads the split again, to name the row.
                check_ids(
                    dataset.splits[split],
                    dataset.table_rows,
                    dataset.bag_lengths,
                    split,
                    columns=names,
                )
            ids = ids[ids != ABSENT]
            lookups[i, day] += len(ids)
            unseen[i, day] += np.count_nonzero(ids == UNSEEN)
            if split == "train":
                # np.bincount makes an array as long as the table for each chunk: with ten
                # million rows this takes 10 ns an id, that 300.
                np.add.at(counts, ids, 1)

    shares = np.divide(unseen, lookups, out=np.full(lookups.shape, np.nan), where=lookups > 0)
    known = metadata is not None and _unseen_has_an_id(metadata)
    total = int(sum(counts.sum() for counts in examples.values()))
    return Statistics(
        days=tuple(
            Day(
                {name: int(counts[day]) for name, counts in examples.items()},
                int(labelled[day, 1, 0]),
                _by_label(dataset.labels, labelled[day]),
            )
            for day in range(number_of_days)
        ),
        columns=tuple(
            Column(
                name=name,
                bag_length=dataset.bag_lengths[i],
                mean_ids=int(lookups[i].sum()) / total,
                occurrences=occurrences[i],
                unseen=tuple(shares[i].tolist()) if known else None,
                table=tables[i],
            )
            for i, name in enumerate(names)
        ),
        missing=metadata and {name: n / sum(metadata.days) for name, n in metadata.missing.items()},
    )


def _by_label(names: Sequence[str], counts: Int64[np.ndarray, "2 H"]) -> dict[str, tuple[int, int]]:
    if len(names) == 1:
        return {}
    return {name: (int(a), int(b)) for name, a, b in zip(names, *counts, strict=True)}


def _chunks(dataset: Dataset, metadata: Metadata | None) -> Iterator[tuple[str, int, Examples]]:
    """Consecutive examples, with their split and day."""
    for name, split in dataset.splits.items():
        if metadata:
            days = [day for day, _, _ in metadata.splits[name]]
        elif name == "train":
            days = range(len(split.days))
        else:
            days = [len(dataset.train.days)] * len(split.days)
        for day, examples in zip(days, split.days, strict=True):
            for start in range(0, len(examples), _CHUNK_ROWS):
                yield name, day, examples[start : start + _CHUNK_ROWS]


def _unseen_has_an_id(metadata: Metadata) -> bool:
    """Whether `UNSEEN` represents unseen values: ids of other programs and random ids have none."""
    options = metadata.made_from["options"]
    return not (options.get("compatible") or options.get("multi_hot_sizes"))
