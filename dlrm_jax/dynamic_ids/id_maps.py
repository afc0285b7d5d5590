"""The maps from ids to rows of all tables with dynamic ids, for the batches that read them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, Int64, UInt64

from dlrm_jax.dynamic_ids.id_columns import ABSENT, IdColumns, map_groups, place
from dlrm_jax.dynamic_ids.id_map import as_keys, translate_all
from dlrm_jax.dynamic_ids.keys import Keys
from dlrm_jax.dynamic_ids.parted_map import PartedMap, loaded_map, merged
from dlrm_jax.dynamic_ids.parts import RowParts
from dlrm_jax.dynamic_ids.policy import DynamicIds
from dlrm_jax.dynamic_ids.routing import Exchange, Routing, UnitRows
from dlrm_jax.dynamic_ids.translation import (
    AskedIds,
    ChangedMaps,
    TranslatedIds,
    Undos,
    Unit,
    of_parts,
)
from dlrm_jax.embedding import EmbeddingCollection
from dlrm_jax.embedding.table import Table
from dlrm_jax.errors import UserError
from dlrm_jax.host_exchange import connected

Arrays = Mapping[str, Mapping[str, np.ndarray]]
"""Arrays of each map by name, by the map's name, see `IdMaps.arrays`."""


class IdMaps:
    """The maps of the tables of a collection that have dynamic ids.

    A table shared by several features has one map; so have all tables that a feature reads. A map
    sees the ids of a batch sample by sample, those of a sample in the order of their columns. Only
    one thread at a time may use it.

    In several processes, each has some of the parts of the maps, and its own samples of a batch:
    those of all processes, one after the other, are the batch. They call `translate`, `find`,
    `arrays`, `keys` and the constructor together, in the same order; the results are those of one
    process. `copy` and `load` are each process's own.

    Args:
        collection: tables, features and lookups; at least one table has dynamic ids.
        seed: seed of the maps' hashes.
        exchange: connections to the other processes; None to make them, if there are any.

    Attributes:
        maps: parts of each map that are here, by the map's name.

    Raises:
        UserError: no table has dynamic ids.
    """

    def __init__(
        self, collection: EmbeddingCollection, seed: int = 0, exchange: Exchange | None = None
    ):
        self._tables = collection.tables
        self._groups = map_groups(collection.tables, collection.features, collection.lookups)
        if not self._groups:
            raise UserError("tables: expected one with dynamic ids, Table(..., ids=DynamicIds())")
        self._columns = IdColumns(collection.features, self._groups)
        tables = [self._tables[group.tables[0]] for group in self._groups]
        rows = {x.name: RowParts(x.rows, _ids(x), seed) for x in tables}
        self._units: list[Unit] = [(x, part) for x, of in rows.items() for part in range(of.count)]
        self._connect(exchange or connected())
        self.maps = {x: PartedMap.new(of, x, self._owned(x)) for x, of in rows.items()}

    def _connect(self, exchange: Exchange | None) -> None:
        self._routing = Routing(len(self._units), exchange)
        self._own = [self._units[i] for i in self._routing.owned()]

    def _owned(self, name: str) -> Callable[[int], bool]:
        return {part for of, part in self._own if of == name}.__contains__

    def over(self, exchange: Exchange | None) -> IdMaps:
        """These maps themselves, for another thread than that which made them.

        Args:
            exchange: connections of that thread, between the same processes.
        """
        made = copy.copy(self)
        made._connect(exchange)
        return made

    @property
    def tables(self) -> dict[str, tuple[Table, ...]]:
        """The tables of each map, by the map's name: that of the first one."""
        return {
            group.tables[0]: tuple(self._tables[name] for name in group.tables)
            for group in self._groups
        }

    @property
    def rows(self) -> dict[str, int]:
        """The number of rows of each map's tables, by the map's name: that of the first table."""
        return {name: self._tables[name].rows for name in self.maps}

    @property
    def capacities(self) -> dict[str, int]:
        """The number of ids that may have a row in each map, by the map's name."""
        return {name: own.rows.capacity for name, own in self.maps.items()}

    @property
    def widths(self) -> dict[str, int]:
        """The largest number of ids that a sample has for each map, by the map's name."""
        return {group.tables[0]: len(group.columns) for group in self._groups}

    @property
    def columns(self) -> Int64[np.ndarray, " c"]:
        """The columns of the id array whose ids are dynamic."""
        return self._columns.dynamic

    def translate(
        self, ids: Any, now: int, present: Bool[np.ndarray, "B C"] | None = None
    ) -> TranslatedIds:
        """The rows of a batch, for training: ids get rows, and others lose theirs.

        Args:
            ids: ids of the batch, [B, C] integers, or arrays [B, L] or [B] by feature name;
                `ABSENT` for none. Those of features without dynamic ids are rows already.
            now: time of the batch, such as the step, at least the one before; see
                `IdMap.translate`.
            present: whether there is an id, [B, C], for ids that may be `ABSENT`; None where all
                others are there.

        Raises:
            UserError: ids have another shape or type, a table has fewer rows than the batch
                different ids, the clock runs backwards, or processes have different ones. All maps
                are as before.
            LostProcessError: another process has ended.
        """
        asked = self.ask(ids, present)
        changed = self.change(asked, now)
        try:
            return self.answer(asked, changed)
        except UserError:
            self.undo(changed)
            raise

    def ask(self, ids: Any, present: Bool[np.ndarray, "B C"] | None = None) -> AskedIds:
        """Sends the ids of a batch to the processes that have their maps: `translate` begins so.

        Args:
            ids: ids, see `translate`.
            present: whether there is an id, see `translate`.

        Raises:
            UserError: ids have another shape or type, in any process.
            LostProcessError: another process has ended.
        """
        found, there, orders = np.zeros((0, 0), np.int32), [], []

        def keys() -> list[UInt64[np.ndarray, " _"]]:
            nonlocal found
            array = self._columns.array(ids)
            found = self._columns.with_rows(array)
            whole = array != ABSENT if present is None else present
            by_unit = []
            for group in self._groups:
                there.append(whole[:, group.columns])
                own = as_keys(array[:, group.columns][there[-1]], group.tables[0])
                order, parts = self.maps[group.tables[0]].split(own)
                orders.append(order)
                by_unit += parts
            return by_unit

        return AskedIds(self._routing.ask(keys), there, orders, found)

    def change(self, asked: AskedIds, now: int) -> ChangedMaps:
        """Gives ids rows in the parts of the maps that are here.

        Args:
            asked: result of `ask`.
            now: time of the batch, see `translate`.
        """
        maps = [self.maps[name].parts[part] for name, part in self._own]
        try:
            found = translate_all(maps, asked.of_units.keys, now)
        except UserError as error:
            return ChangedMaps([], {}, error=error)
        rows = [
            UnitRows(*(self.maps[name].rows.in_table(part, x) for x in (own.rows, own.fresh)))
            for (name, part), own in zip(self._own, found, strict=True)
        ]
        undo = {x: own.undo for x, own in zip(self._own, found, strict=True)}
        return ChangedMaps(rows, undo, int(now))

    def answer(self, asked: AskedIds, changed: ChangedMaps) -> TranslatedIds:
        """Sends rows back to those who asked for them: `translate` ends so.

        Args:
            asked: result of `ask`.
            changed: result of `change`.

        Raises:
            UserError: a process has changed nothing, see `translate`. The others must `undo` what
                they have changed.
            LostProcessError: another process has ended.
        """
        rows, _, now, error = changed
        by_unit = iter(self._routing.answer(asked.of_units, rows, now, error))
        fresh = {}
        for group, present, order in zip(self._groups, asked.present, asked.orders, strict=True):
            parts = [next(by_unit) for _ in range(self.maps[group.tables[0]].rows.count)]
            rows = merged(order, [each.rows for each in parts])
            place(asked.rows, group.columns, present, rows)
            fresh |= dict.fromkeys(group.tables, np.concatenate([each.fresh for each in parts]))
        return TranslatedIds(asked.rows, fresh, changed.undo)

    def undo(self, changed: ChangedMaps) -> None:
        """Takes the parts that are here back to before their last batch.

        Args:
            changed: result of `change`.
        """
        for (name, part), undo in changed.undo.items():
            self.maps[name].parts[part].undo(undo)

    def find(self, ids: Any) -> Int32[np.ndarray, "B C"]:
        """The rows of a batch, for evaluation and serving: nothing changes.

        Args:
            ids: ids, see `translate`; one without a row reads a default.
        """
        asked, none = self.ask(ids), np.zeros(0, np.int32)
        found = [
            UnitRows(self.maps[name].find_in(part, keys), none)
            for (name, part), keys in zip(self._own, asked.of_units.keys, strict=True)
        ]
        return self.answer(asked, ChangedMaps(found, {})).ids

    def arrays(self, undone: Sequence[Undos] = ()) -> dict[str, dict[str, np.ndarray]]:
        """Copies of all that the maps are, by row of the whole tables, in every process.

        Args:
            undone: records of the last batches, the latest last, which the copies are without.
        """
        local = {name: own.arrays(of_parts(name, undone)) for name, own in self.maps.items()}
        return self._joined([local[name][part] for name, part in self._own])

    def keys(self, undone: Sequence[Undos] = ()) -> dict[str, Keys]:
        """Copies of the ids of the rows by map, see `arrays`."""
        return self.joined_keys(self.own_keys(undone))

    def own_keys(self, undone: Sequence[Undos] = ()) -> list[Keys]:
        """Copies of the ids of the rows of the parts that are here, for `joined_keys`."""
        local = {name: own.keys(of_parts(name, undone)) for name, own in self.maps.items()}
        return [local[name][part] for name, part in self._own]

    def joined_keys(self, own: Sequence[Keys]) -> dict[str, Keys]:
        """What `keys` gives.

        Args:
            own: result of `own_keys`.
        """
        joined = self._joined([each._asdict() for each in own])
        return {name: Keys(**each) for name, each in joined.items()}

    def _joined(self, own: Sequence[Mapping[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
        """The arrays of whole tables, of those of the parts that are here."""
        by_unit = iter(self._routing.gather(own))
        return {
            name: own.rows.joined([next(by_unit) for _ in range(own.rows.count)])
            for name, own in self.maps.items()
        }

    def copy(self, undone: Sequence[Undos] = ()) -> IdMaps:
        """A copy that doesn't change with these maps.

        Args:
            undone: records of the last batches, see `arrays`.
        """
        made = copy.copy(self)
        made.maps = {name: own.copy(of_parts(name, undone)) for name, own in self.maps.items()}
        return made

    def load(self, arrays: Arrays) -> None:
        """Makes the maps those that `arrays` gave.

        Args:
            arrays: arrays of whole tables.

        Raises:
            UserError: there is no map of a table, or one of other rows, or it contradicts itself.
        """
        self.maps = {
            name: loaded_map(name, own.rows, arrays, self._owned(name))
            for name, own in self.maps.items()
        }


def _ids(table: Table) -> DynamicIds:
    assert table.ids
    return table.ids
