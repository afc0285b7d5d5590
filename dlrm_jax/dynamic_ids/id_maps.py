"""The maps from ids to rows of all tables with dynamic ids, for the batches that read them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64

from dlrm_jax.dynamic_ids.id_map import IdMap, translate_all
from dlrm_jax.dynamic_ids.keys import Keys
from dlrm_jax.dynamic_ids.occupants import Undo
from dlrm_jax.embedding import EmbeddingCollection
from dlrm_jax.embedding.integer_arrays import integers
from dlrm_jax.embedding.table import Feature, Lookup, Table
from dlrm_jax.errors import UserError
from dlrm_jax.processes import check_one_process

ABSENT = -1
"""The number that stands for an absent id, also in features with dynamic ids: all 64 bits are 1.
Every other number is an id there, negative ones and unsigned ones from 2^63 on, too."""

Undos = Mapping[str, Undo]
"""The record of one batch that each map is taken back by, by the map's name."""

Arrays = Mapping[str, Mapping[str, np.ndarray]]
"""Arrays of each map by name, by the map's name, see `IdMap.arrays`."""


class TranslatedIds(NamedTuple):
    """A batch's ids as rows.

    Attributes:
        ids: rows of the tables, [B, C] int32; negative is absent.
        fresh: rows that begin afresh, by table; see `EmbeddingCollection.reset_rows`.
        undo: record that takes the maps back to before the batch.
    """

    ids: Int32[np.ndarray, "B C"]
    fresh: dict[str, Int32[np.ndarray, " F"]]
    undo: Undos


class MapGroup(NamedTuple):
    """Tables that share a map, since a feature reads them both or they a feature.

    Attributes:
        tables: names of the tables; the first one names the map.
        features: names of the features.
        columns: columns of the features in the id array.
    """

    tables: tuple[str, ...]
    features: tuple[str, ...]
    columns: Int64[np.ndarray, " c"]


class IdMaps:
    """The maps of the tables of a collection that have dynamic ids.

    A table shared by several features has one map; so have all tables that a feature reads. A map
    sees the ids of a batch sample by sample, those of a sample in the order of their columns. Only
    one thread at a time may use it.

    Args:
        collection: tables, features and lookups; at least one table has dynamic ids.
        seed: seed of the maps' hashes.

    Raises:
        UserError: no table has dynamic ids.
    """

    def __init__(self, collection: EmbeddingCollection, seed: int = 0):
        self._features = collection.features
        self._tables = collection.tables
        self._groups = map_groups(collection.tables, collection.features, collection.lookups)
        if not self._groups:
            raise UserError("tables: expected one with dynamic ids, Table(..., ids=DynamicIds())")
        self._columns = sum(feature.max_ids for feature in self._features)
        dynamic = np.concatenate([group.columns for group in self._groups])
        self._rows = np.setdiff1d(np.arange(self._columns), dynamic)
        self.maps: dict[str, IdMap] = {}
        for group in self._groups:
            table = self._tables[group.tables[0]]
            assert table.ids is not None
            self.maps[table.name] = IdMap(table.rows, table.ids, seed, table.name)

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
    def widths(self) -> dict[str, int]:
        """The largest number of ids that a sample has for each map, by the map's name."""
        return {group.tables[0]: len(group.columns) for group in self._groups}

    @property
    def columns(self) -> Int64[np.ndarray, " c"]:
        """The columns of the id array whose ids are dynamic."""
        return np.setdiff1d(np.arange(self._columns), self._rows)

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
                different ids, the clock runs backwards, or there are several processes, each of
                which would have maps of its own. All maps are as before.
        """
        check_one_process()
        array = self._array(ids)
        found, fresh, undo = self._start(array), {}, {}
        own = [array[:, group.columns] for group in self._groups]
        whole = array != ABSENT if present is None else present
        there = [whole[:, group.columns] for group in self._groups]
        keys = [columns[mask] for columns, mask in zip(own, there, strict=True)]
        translated = translate_all([*self.maps.values()], keys, now)
        for group, mask, of_group in zip(self._groups, there, translated, strict=True):
            _place(found, group.columns, mask, of_group.rows)
            fresh |= dict.fromkeys(group.tables, of_group.fresh)
            undo[group.tables[0]] = of_group.undo
        return TranslatedIds(found, fresh, undo)

    def find(self, ids: Any) -> Int32[np.ndarray, "B C"]:
        """The rows of a batch, for evaluation and serving: nothing changes.

        Args:
            ids: ids, see `translate`; one without a row reads a default.
        """
        array = self._array(ids)
        found = self._start(array)
        for group in self._groups:
            own = array[:, group.columns]
            rows = self.maps[group.tables[0]].find(own[own != ABSENT])
            _place(found, group.columns, own != ABSENT, rows)
        return found

    def arrays(self, undone: Sequence[Undos] = ()) -> dict[str, dict[str, np.ndarray]]:
        """Copies of all that the maps are.

        Args:
            undone: records of the last batches, the latest last, which the copies are without.
        """
        return {
            name: own.arrays([undo[name] for undo in undone]) for name, own in self.maps.items()
        }

    def keys(self, undone: Sequence[Undos] = ()) -> dict[str, Keys]:
        """Copies of the ids of the rows by map, see `arrays`."""
        return {name: own.keys([undo[name] for undo in undone]) for name, own in self.maps.items()}

    def copy(self, undone: Sequence[Undos] = ()) -> IdMaps:
        """A copy that doesn't change with these maps.

        Args:
            undone: records of the last batches, see `arrays`.
        """
        made = copy.copy(self)
        made.load(self.arrays(undone))
        return made

    def load(self, arrays: Arrays) -> None:
        """Makes the maps those that `arrays` gave.

        Raises:
            UserError: there is no map of a table, or one of other rows, or it contradicts itself.
        """
        loaded = {}
        for name in self.maps:
            table = self._tables[name]
            if name not in arrays:
                raise UserError(f"ids of table {name}: expected a map, there is none")
            rows = len(arrays[name].get("keys", ()))
            if rows != table.rows:
                raise UserError(
                    f"ids of table {name}: expected a map of {table.rows} rows, got one of {rows}; "
                    f"give the table as many rows"
                )
            assert table.ids is not None
            try:
                loaded[name] = IdMap.from_arrays(table.ids, arrays[name], name)
            except UserError as error:
                raise UserError(f"ids of table {name}: {error}") from error
        self.maps = loaded

    def _array(self, ids: Any) -> Int64[np.ndarray, "B C"]:
        """The id array; unsigned numbers of 64 bits by their bits."""
        if isinstance(ids, Mapping):
            names = [feature.name for feature in self._features]
            if ids.keys() != set(names):
                raise UserError(
                    f"ids: expected those of the features {', '.join(names)}, got "
                    f"{', '.join(map(str, ids)) or 'none'}"
                )
            parts = [_padded(feature, ids[feature.name]) for feature in self._features]
            if len({len(part) for part in parts}) > 1:
                counts = ", ".join(
                    f"{len(x)} of {name}" for x, name in zip(parts, names, strict=True)
                )
                raise UserError(f"ids: expected as many samples of each feature, got {counts}")
            return np.concatenate(parts, axis=1)
        array = _integers("ids", ids)
        if array.ndim != 2 or array.shape[1] != self._columns:
            raise UserError(
                f"ids: expected [B, {self._columns}], the bags side by side, got "
                f"{list(array.shape)}"
            )
        return array

    def _start(self, array: Int64[np.ndarray, "B C"]) -> Int32[np.ndarray, "B C"]:
        """The result with the columns that are rows already; the others are absent."""
        found = np.full(array.shape, ABSENT, np.int32)
        own = array[:, self._rows]
        if own.size and not -(2**31) <= own.min() <= own.max() < 2**31:
            raise UserError(
                f"ids: expected rows of 32 bits where tables have no dynamic ids, got {own.min()} "
                f"to {own.max()}"
            )
        found[:, self._rows] = own
        return found


def _place(
    found: Int32[np.ndarray, "B C"],
    columns: Int64[np.ndarray, " c"],
    present: Bool[np.ndarray, "B c"],
    rows: Int32[np.ndarray, " N"],
) -> None:
    """Writes the rows of the ids that are present."""
    own = np.full(present.shape, ABSENT, np.int32)
    own[present] = rows
    found[:, columns] = own


def map_groups(
    tables: Mapping[str, Table], features: Sequence[Feature], lookups: Sequence[Lookup]
) -> list[MapGroup]:
    """The tables with dynamic ids by the map that they share, in the order of the tables."""
    pairs = [(x.feature, x.table) for x in lookups if tables[x.table].ids]
    ends = np.cumsum([feature.max_ids for feature in features])
    columns = {
        f.name: np.arange(end - f.max_ids, end) for f, end in zip(features, ends, strict=True)
    }
    found, left = [], [table.name for table in tables.values() if table.ids]
    while left:
        own, read_by = {left[0]}, set()
        while True:  # until no feature reads another table, and no table has another feature
            read_by = {feature for feature, table in pairs if table in own}
            more = {table for feature, table in pairs if feature in read_by}
            if more == own:
                break
            own = more
        names = tuple(feature.name for feature in features if feature.name in read_by)
        of_group = np.concatenate([columns[name] for name in names])
        found.append(MapGroup(tuple(x for x in left if x in own), names, of_group))
        left = [name for name in left if name not in own]
    return found


def _padded(feature: Feature, ids: Any) -> Int64[np.ndarray, "B L"]:
    """A feature's bags, padded to its width."""
    array = _integers(f"feature {feature.name}", ids)
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim != 2 or array.shape[1] > feature.max_ids:
        raise UserError(
            f"feature {feature.name}: expected [B] or [B, L] with at most {feature.max_ids} ids, "
            f"got {list(array.shape)}"
        )
    missing = feature.max_ids - array.shape[1]
    return np.pad(array, [(0, 0), (0, missing)], constant_values=ABSENT)


def _integers(name: str, ids: Any) -> Int64[np.ndarray, "..."]:
    """Integers as signed ones of 64 bits, by their bits."""
    array = integers(name, ids, f", with {ABSENT} for absent ids")
    return array.view(np.int64) if array.dtype == np.uint64 else array.astype(np.int64, copy=False)
