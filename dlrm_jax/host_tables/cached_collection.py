"""A collection some of whose tables are caches of larger ones in the host's memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from dlrm_jax.dynamic_ids.id_columns import MapGroup, map_groups
from dlrm_jax.embedding import EmbeddingCollection, EmbeddingState, Feature, Lookup, Table
from dlrm_jax.embedding.table_io import check_array
from dlrm_jax.errors import UserError
from dlrm_jax.host_tables.host_rows import HostRows
from dlrm_jax.host_tables.initial_rows import initial_arrays


def device_tables(tables: Iterable[Table], cache_rows: Mapping[str, int]) -> tuple[Table, ...]:
    """The tables as devices have them: some with the rows of their caches alone.

    Args:
        tables: whole tables.
        cache_rows: number of rows on the devices of each table that lies in host memory, by name.
    """
    return tuple(
        dataclasses.replace(x, rows=cache_rows[x.name]) if x.name in cache_rows else x
        for x in tables
    )


class CachedCollection(EmbeddingCollection):
    """A collection with tables that lie in the host's memory.

    On the devices it is an `EmbeddingCollection` whose tables have the rows of the caches: step,
    plan and mesh know of nothing else. Ids of a batch are rows of the whole tables, which
    `row_feed.RowFeed` replaces by places in the caches while it moves rows.

    What reads and makes whole tables, such as a checkpoint, gets whole ones: `from_arrays`,
    `iter_arrays`, `array_specs`. The rows on the host belong to the state that `from_arrays` has
    made last, as it is after each swap; an earlier state must not be used any more.

    Args:
        tables: whole tables.
        features: features in the order of their columns in the id array.
        lookups: lookups in the order of the results.
        cache_rows: number of rows on the devices of each table that lies in host memory, by name.
        arguments: further arguments of `EmbeddingCollection` by position, from the mesh on.
        options: further arguments of it by name.

    Attributes:
        whole: whole tables that lie in the host's memory, by name.
        groups: tables that share a cache map, see `map_groups`.

    Raises:
        UserError: a table of ``cache_rows`` can't be cached, or there are several processes.
    """

    def __init__(
        self,
        tables: Iterable[Table],
        features: Iterable[Feature],
        lookups: Iterable[Lookup],
        *arguments: Any,
        cache_rows: Mapping[str, int],
        **options: Any,
    ):
        tables, features, lookups = tuple(tables), tuple(features), tuple(lookups)
        self.whole = {table.name: table for table in tables if table.name in cache_rows}
        self.cache_rows = dict(cache_rows)
        _check(self.whole, lookups, self.cache_rows)
        cached = device_tables(tables, cache_rows)
        super().__init__(cached, features, lookups, *arguments, **options)
        self.groups: list[MapGroup] = map_groups(self.tables, features, lookups, self.whole)
        for group in self.groups:
            if len({(self.whole[x].rows, self.cache_rows[x]) for x in group.tables}) > 1:
                found = ", ".join(
                    f"{x} with {self.cache_rows[x]} of {self.whole[x].rows}" for x in group.tables
                )
                raise UserError(
                    f"cache_rows: tables that features share must have as many rows, and as many "
                    f"on the devices, got {found}"
                )
        self._host: HostRows | None = None

    @property
    def host(self) -> HostRows:
        """The rows in the host's memory, of the last state that was made."""
        assert self._host is not None, "expected a state that from_arrays or init has made"
        return self._host

    def from_arrays(
        self, source: Callable[[Table], Mapping[str, Array | np.ndarray]], seed: int
    ) -> EmbeddingState:
        """See `WholeTables.from_arrays`; the first rows of the tables are cached."""
        arrays: dict[str, dict[str, np.ndarray]] = {}

        def of_devices(table: Table) -> Mapping[str, Any]:
            if table.name not in self.whole:
                return source(table)
            whole = self.whole[table.name]
            given = dict(source(whole))
            specs = self.array_specs(table.name)
            scalars = {key: given.pop(key) for key in [*given] if given[key].ndim == 0}
            own = arrays[table.name] = {}
            for key in [*given]:
                array = given.pop(key)
                if key not in specs:
                    raise UserError(
                        f"table {table.name} has {', '.join(specs)}, but {key!r} was given"
                    )
                spec = jax.ShapeDtypeStruct(specs[key].shape, specs[key].dtype)
                check_array(f"table {table.name}: {key}", array, spec)
                own[key] = np.array(array, specs[key].dtype, order="C")
            optimizer = self.layout.slab_of(table.name).optimizer
            own |= initial_arrays(whole, optimizer, specs, own, seed)
            arrays[table.name] = {key: own[key] for key in specs if key in own}  # in their order
            return scalars | {key: x[: table.rows] for key, x in own.items()}

        state = super().from_arrays(of_devices, seed)
        first = {
            name: np.arange(rows, dtype=np.int32)
            for group in self.groups
            for name, rows in [(group.tables[0], self.cache_rows[group.tables[0]])]
        }
        by_table = {x: first[group.tables[0]] for group in self.groups for x in group.tables}
        self._host = HostRows(arrays, by_table)
        return state

    def iter_arrays(self, state: EmbeddingState) -> Iterator[tuple[Table, str, Any]]:
        """See `WholeTables.iter_arrays`; arrays of tables in the host's memory are NumPy's.

        Rows of the caches are written to them. They change with the next batch that is begun.
        """
        self.host.land()
        for table, key, array in super().iter_arrays(state):
            whole = self.host.arrays.get(table.name, {}).get(key)
            if whole is None:
                yield self.whole.get(table.name, table), key, array
            else:
                values = np.asarray(array)
                whole[self.host.cached[table.name]] = values.view(whole.dtype)
                yield self.whole[table.name], key, whole

    def write_back(self, state: EmbeddingState) -> None:
        """Writes the rows of the caches to the host's tables, where they are out of date.

        Their optimizer state stays as it is there: predictions don't read it.

        Args:
            state: last state of the training.
        """
        self.host.land()
        rows = {name: np.arange(count) for name, count in self.cache_rows.items()}
        for name, values in super().read_rows(state, rows).items():
            whole = self.host.arrays[name]["table"]
            whole[self.host.cached[name]] = values.view(whole.dtype)

    def array_specs(self, table: str) -> dict[str, Any]:
        """See `WholeTables.array_specs`; of tables in the host's memory, NumPy arrays of no size.

        They have the shapes and dtypes of the whole arrays, and any values.
        """
        specs = super().array_specs(table)
        if table not in self.whole:
            return specs
        rows = self.whole[table].rows
        return {
            key: np.broadcast_to(np.zeros((), x.dtype), (rows, *x.shape[1:]) if x.shape else ())
            for key, x in specs.items()
        }

    def read_rows(self, state: EmbeddingState, rows: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """See `WholeTables.read_rows`.

        Raises:
            UserError: a table lies in the host's memory.
        """
        self._refuse(rows)
        return super().read_rows(state, rows)

    def read_row_state(
        self, state: EmbeddingState, rows: Mapping[str, Any]
    ) -> dict[str, dict[str, np.ndarray]]:
        """See `WholeTables.read_row_state`.

        Raises:
            UserError: a table lies in the host's memory.
        """
        self._refuse(rows)
        return super().read_row_state(state, rows)

    def write_rows(
        self,
        state: EmbeddingState,
        rows: Mapping[str, Any],
        values: Mapping[str, Mapping[str, np.ndarray]],
    ) -> EmbeddingState:
        """See `WholeTables.write_rows`.

        Raises:
            UserError: a table lies in the host's memory.
        """
        self._refuse(rows)
        return super().write_rows(state, rows, values)

    def _refuse(self, rows: Mapping[str, Any]) -> None:
        for name in rows:
            if name in self.whole:
                raise UserError(
                    f"rows: table {name} lies in host memory, and its rows move between there and "
                    f"the devices; read whole tables with iter_arrays"
                )


def _check(
    whole: Mapping[str, Table], lookups: Iterable[Lookup], cache_rows: Mapping[str, int]
) -> None:
    if missing := sorted(cache_rows.keys() - whole.keys()):
        raise UserError(f"cache_rows: there is no table {missing[0]!r}")
    if jax.process_count() > 1:
        raise UserError(
            "cache_rows: tables in host memory are for a single process, whose loader sees all ids "
            "of a batch; leave them out, or run one process"
        )
    for name, table in whole.items():
        if not 1 <= cache_rows[name] < table.rows:
            raise UserError(
                f"cache_rows: expected at least 1 row of table {name} on the devices, and fewer "
                f"than its {table.rows:,}, got {cache_rows[name]}"
            )
        if table.ids:
            raise UserError(
                f"cache_rows: the rows of table {name} come and go with its dynamic ids; leave one "
                f"of the two out"
            )
        if table.rounds_randomly and table.trainable:
            raise UserError(
                f"cache_rows: table {name} is rounded at random by the number of each row, which "
                f"changes in a cache; expected stochastic_rounding=False, or float32"
            )
    readers: dict[str, set[bool]] = {}
    for lookup in lookups:
        if lookup.id_map is not None and lookup.table in whole:
            raise UserError(
                f"lookup {lookup.name}: expected no id_map for table {lookup.table}, whose ids are "
                f"replaced by places in its cache"
            )
        readers.setdefault(lookup.feature, set()).add(lookup.table in whole)
    for feature, kinds in readers.items():
        if len(kinds) > 1:
            raise UserError(
                f"cache_rows: feature {feature} reads tables in host memory and others, and an id "
                f"has one row number in all of them; name all of its tables or none"
            )
