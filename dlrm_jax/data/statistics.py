"""Statistics of prepared data: examples by day, and the lookups of each table's rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64

from dlrm_jax.data.arrays import ABSENT, Dataset, Examples
from dlrm_jax.data.check import check_ids, check_labels
from dlrm_jax.data.directory import Metadata
from dlrm_jax.data.preprocessing.vocabulary import UNSEEN

_CHUNK_ROWS = 1 << 16


@dataclass(frozen=True)
class Day:
    """One day of the data.

    Attributes:
        by_split: number of examples that the day gives to each split, 0 included.
        positives: number of examples with label 1, or one above 1/2.
    """

    by_split: Mapping[str, int]
    positives: int

    @property
    def examples(self) -> int:
        """The number of examples in all splits."""
        return sum(self.by_split.values())

    @property
    def label_rate(self) -> float:
        """The share of positives; NaN without examples."""
        return self.positives / self.examples if self.examples else float("nan")


@dataclass(frozen=True)
class Column:
    """One categorical column and its table.

    Attributes:
        name: name in the metadata; C1, C2 and so on without metadata.
        bag_length: largest number of ids per example.
        mean_ids: mean number of ids per example over all days, `ABSENT` not counted.
        occurrences: number of lookups of each row of the table in the training split.
        unseen: share of each day's lookups whose values aren't in the vocabulary, NaN on a day
            without lookups; None where no id is known to represent such values.
    """

    name: str
    bag_length: int
    mean_ids: float
    occurrences: Int64[np.ndarray, " R"]
    unseen: tuple[float, ...] | None

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
    names = metadata.columns if metadata else [f"C{i + 1}" for i in range(len(dataset.table_rows))]
    number_of_days = len(metadata.days) if metadata else len(dataset.train.days) + 1
    examples = {name: np.zeros(number_of_days, np.int64) for name in dataset.splits}
    positives = np.zeros(number_of_days, np.int64)
    lookups, unseen = np.zeros((2, len(names), number_of_days), np.int64)
    occurrences = [np.zeros(rows, np.int64) for rows in dataset.table_rows]
    edges = np.cumsum([0, *dataset.bag_lengths]).tolist()

    for name, split in dataset.splits.items():
        check_labels(split, name, soft=True)
    for split, day, chunk in _chunks(dataset, metadata):
        examples[split][day] += len(chunk)
        positives[day] += np.count_nonzero(chunk.labels > 0.5)
        all_ids = np.asarray(chunk.ids)
        for i, counts in enumerate(occurrences):
            ids = all_ids[:, edges[i] : edges[i + 1]].ravel()
            if ids.min() < ABSENT or ids.max() >= len(counts):
                # Reads the split again, to name the row.
                check_ids(dataset.splits[split], dataset.table_rows, dataset.bag_lengths, split)
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
            Day({name: int(counts[day]) for name, counts in examples.items()}, int(positives[day]))
            for day in range(number_of_days)
        ),
        columns=tuple(
            Column(
                name=name,
                bag_length=dataset.bag_lengths[i],
                mean_ids=int(lookups[i].sum()) / total,
                occurrences=occurrences[i],
                unseen=tuple(shares[i].tolist()) if known else None,
            )
            for i, name in enumerate(names)
        ),
        missing=metadata and {name: n / sum(metadata.days) for name, n in metadata.missing.items()},
    )


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
