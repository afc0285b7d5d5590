"""Which rows of tables steps have changed, by the ids of their batches, on the host."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8

from dlrm_jax.dynamic_ids.id_columns import map_groups
from dlrm_jax.embedding import EmbeddingCollection
from dlrm_jax.processes import gathered_bytes, is_distributed
from dlrm_jax.training.learner import Learner

Numbers = dict[str, Int32[np.ndarray, " n"]]
"""Numbers of rows by table, ascending, each once; tables without any are left out."""


_Read = tuple[Any, Any, Bool[np.ndarray, " rows"]]
"""Columns of ids, what maps them to rows or None, and the marks of a table."""


class TouchedRows:
    """The rows that may have changed since they were last taken; a byte for each row of a table.

    Each of several processes marks those of its own samples, and they take them together.

    A step changes the rows that its batch names, whatever the optimizer: moments of others rest.
    Only an L2 penalty of all rows changes them all, see `all_rows`. Frozen tables don't change, but
    for rows with dynamic ids: one that gets another id begins afresh, in all tables of its map.

    Args:
        collection: tables, and which columns of the ids read them.
        all_rows: whether each step changes every row of the tables that are trained.
    """

    def __init__(self, collection: EmbeddingCollection, all_rows: bool = False):
        slab_of = collection.layout.slab_of
        trained = [name for name in collection.tables if slab_of(name).optimizer]
        self._marks = {x.name: np.zeros(x.rows, bool) for x in collection.tables.values()}
        self._all_rows = trained if all_rows else []
        self._mark_all()
        ends = np.cumsum([feature.max_ids for feature in collection.features]).tolist()
        columns = {
            x.name: slice(end - x.max_ids, end)
            for x, end in zip(collection.features, ends, strict=True)
        }
        self._reads: list[_Read] = [
            (columns[lookup.feature], lookup.id_map, self._marks[lookup.table])
            for lookup in collection.lookups
            if lookup.table in trained and not collection.tables[lookup.table].ids
        ]
        groups = map_groups(collection.tables, collection.features, collection.lookups)
        for group in groups:
            self._reads += [(group.columns, None, self._marks[name]) for name in group.tables]
        self._ahead: collections.deque[tuple[int, np.ndarray]] = collections.deque()

    def add(self, step: int, ids: Int[np.ndarray, "B C"]) -> None:
        """Notes the ids of a batch that is read ahead, perhaps by another thread.

        Args:
            step: number of the step that trains on it, from 1 on.
            ids: ids of the batch; negative is absent.
        """
        self._ahead.append((step, ids))

    def done(self, step: int) -> None:
        """Marks the rows of the batches up to a step, which has been started."""
        while self._ahead and self._ahead[0][0] <= step:
            _, ids = self._ahead.popleft()
            for columns, id_map, marks in self._reads:
                present = ids[:, columns].ravel()
                present = present[present >= 0]
                marks[present if id_map is None else id_map(present)] = True

    def take(self) -> Numbers:
        """The rows that are marked in any process; they aren't marked any more.

        All processes call it at the same time, after the same step.
        """
        if is_distributed():
            for content in gathered_bytes(self._packed()):
                self._mark_packed(content)
        found = {name: np.flatnonzero(x).astype(np.int32) for name, x in self._marks.items()}
        for name, numbers in found.items():
            self._marks[name][numbers] = False
        self._mark_all()
        return {name: numbers for name, numbers in found.items() if len(numbers)}

    def _packed(self) -> UInt8[np.ndarray, " n"]:
        """The marked rows of each table: how many, then their numbers, or a bit for each row."""
        parts = []
        for marks in self._marks.values():
            count = int(np.count_nonzero(marks))
            parts.append(np.array([count], np.int32).view(np.uint8))
            if _as_numbers(count, len(marks)):
                parts.append(np.flatnonzero(marks).astype(np.int32).view(np.uint8))
            else:
                parts.append(np.packbits(marks))
        return np.concatenate(parts)

    def _mark_packed(self, content: UInt8[np.ndarray, " n"]) -> None:
        """Marks the rows of what `_packed` gave."""
        start = 4
        for marks in self._marks.values():
            count = int(content[start - 4 : start].view(np.int32)[0])
            if _as_numbers(count, len(marks)):
                end = start + 4 * count
                marks[content[start:end].view(np.int32)] = True
            else:
                end = start + -(-len(marks) // 8)
                marks |= np.unpackbits(content[start:end], count=len(marks)).view(bool)
            start = end + 4

    def _mark_all(self) -> None:
        for name in self._all_rows:
            self._marks[name][:] = True

    def mark(self, rows: Mapping[str, Int[np.ndarray, " n"]]) -> None:
        """Marks rows, such as those that were taken in vain."""
        for name, numbers in rows.items():
            self._marks[name][numbers] = True


def _as_numbers(count: int, rows: int) -> bool:
    """Whether the numbers of so many of a table's rows have fewer bytes than a bit for each row."""
    return 32 * count < rows


def touched_rows(learner: Learner) -> TouchedRows:
    """The rows that the steps of a learner change."""
    return TouchedRows(learner.collection, learner.penalty.of_all_rows)
