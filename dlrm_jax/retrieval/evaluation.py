"""Recall and NDCG of a split: each positive row asks for its item among all items."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from dlrm_jax.data.arrays import Examples, Split
from dlrm_jax.retrieval.columns import Side
from dlrm_jax.retrieval.items import Items
from dlrm_jax.retrieval.log_rows import chunks, is_positive
from dlrm_jax.retrieval.ranking import Ranking, ranking_metrics

_ROWS = 1 << 14
"""Rows in memory at a time, as features and as vectors."""

VectorsOf = Callable[[Examples], Float32[np.ndarray, "n d"]]
"""A function that gives the vectors of the users of examples."""


@dataclasses.dataclass(frozen=True)
class Questions:
    """The positive rows of a split.

    Attributes:
        split: the split.
        rows: row numbers of those whose item is in the training rows.
        chosen: number of the item of each of these.
        new: number of positive rows with another item, which nothing can find.
    """

    split: Split
    rows: Int64[np.ndarray, " U"]
    chosen: Int64[np.ndarray, " U"]
    new: int

    def __len__(self) -> int:
        return len(self.rows)

    def first(self, count: int) -> Questions:
        """So many of them, evenly spaced; all with 0 or if there are no more."""
        if not 0 < count < len(self):
            return self
        kept = np.arange(count) * len(self) // count
        return dataclasses.replace(self, rows=self.rows[kept], chosen=self.chosen[kept])


def find_questions(split: Split, item: Side, items: Items) -> Questions:
    """The positive rows of a split, as questions for their items."""
    rows, chosen, new = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    for first, examples in chunks(split):
        positive = np.flatnonzero(is_positive(examples))
        numbers = items.numbers_of(item.keys(item.ids(examples)))[positive]
        rows.append(first + positive[numbers >= 0])
        chosen.append(numbers[numbers >= 0])
        new += int(np.sum(numbers < 0))
    return Questions(split, np.concatenate(rows), np.concatenate(chosen), new)


def evaluate(
    questions: Questions,
    ranking: Ranking,
    users: VectorsOf,
    items: Float32[np.ndarray, "I d"],
    known: Callable[[Examples], Int64[np.ndarray, "n E"]],
    ks: tuple[int, ...],
) -> dict[str, Any]:
    """Recall and NDCG at each k by the rows' weights, the number of rows, and that of new items.

    Args:
        questions: rows to rank for, at least one.
        ranking: ranking on the mesh.
        users: function that gives the users' vectors.
        items: vectors of all items.
        known: function that gives the numbers of items that aren't ranked, negative for none.
        ks: numbers of first items.
    """
    places, weights = [], []
    for start in range(0, len(questions), _ROWS):
        part = slice(start, start + _ROWS)
        examples = questions.split.take(questions.rows[part])
        places.append(ranking(users(examples), items, questions.chosen[part], known(examples)))
        if examples.sample_weights is not None:
            weights.append(examples.sample_weights.astype(np.float64))
    of_rows = np.concatenate(weights) if weights else None
    found = ranking_metrics(np.concatenate(places), ks, of_rows)
    return found | {"examples": len(questions), "new_items": questions.new}
