"""Ids that a table can do without: how many there are, and what is left without them.

Only tables with dynamic ids can be pruned, since their ids are dealt to rows anew: those that are
left move together, and the table gets as many rows as they need. A run that resumes may give it
more, see `training.resized_tables`. An id that has gone is as if it had never had a row.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int

from dlrm_jax.dynamic_ids.resizing import Resized, resized, rows_needed, without
from dlrm_jax.errors import UserError
from dlrm_jax.inference.table_health import row_norms
from dlrm_jax.training.checksums import LoadedSums
from dlrm_jax.training.memory import release_memory
from dlrm_jax.training.saved_arrays import load_array, tables_in
from dlrm_jax.training.saved_id_maps import NAME, load_arrays, policy_of


@dataclasses.dataclass(frozen=True)
class Rules:
    """The ids that lose their rows: those of which one of the rules says so.

    Attributes:
        min_count: number of times that an id must have been seen to keep its row; None for any.
        max_age: units of the run's clock for which it may not have been seen; None for any.
        min_norm: Euclidean norm that its row must have, over all tables of its map; None for any.
    """

    min_count: int | None = None
    max_age: int | None = None
    min_norm: float | None = None


@dataclasses.dataclass(frozen=True)
class Pruning:
    """What the rules take from the tables of a map.

    Attributes:
        name: name of the map, that of its first table.
        tables: names of all its tables.
        rows: number of rows of each.
        row_bytes: bytes of a row of all of them, with optimizer state.
        ids: number of ids that have rows.
        gone: rows whose ids lose them.
        counts: share that these ids have in the counts of all.
        change: map and rows that are left.
    """

    name: str
    tables: tuple[str, ...]
    rows: int
    row_bytes: int
    ids: int
    gone: Int[np.ndarray, " n"]
    counts: float
    change: Resized

    @property
    def rows_left(self) -> int:
        """The number of rows of each table afterwards."""
        return len(self.change.arrays["keys"])


def plan_pruning(
    checkpoint: Path, metadata: Mapping[str, Any], rules: Rules, tables: Sequence[str] = ()
) -> list[Pruning]:
    """What the rules would take, map by map; nothing is written.

    Args:
        checkpoint: directory of the checkpoint.
        metadata: result of `metadata.read_metadata`.
        rules: rules.
        tables: names of tables whose ids lose rows; none for all with dynamic ids.

    Raises:
        UserError: a table isn't there or has no dynamic ids, or the checkpoint can't be read.
        DamagedCheckpointError: files are missing or damaged.
    """
    return [
        _plan(checkpoint, metadata, rules, name) for name in _maps_of(checkpoint, metadata, tables)
    ]


def _maps_of(checkpoint: Path, metadata: Mapping[str, Any], tables: Sequence[str]) -> Iterator[str]:
    noted = metadata.get(NAME, {})
    dynamic = {table: name for name, own in noted.items() for table in own["tables"]}
    listed = f"those of {checkpoint} are {', '.join(dynamic) or 'none'}"
    for table in tables:
        if table not in dynamic:
            what = "has no dynamic ids" if table in tables_in(metadata) else "isn't there"
            raise UserError(
                f"tables: expected tables with dynamic ids, {listed}, but {table} {what}; rows of "
                f"a vocabulary can't be taken away without preparing the data anew"
            )
    if not dynamic:
        raise UserError(
            f"expected a checkpoint of tables with dynamic ids, whose rows can be dealt anew; "
            f"{listed}; train with --dynamic_ids, or prepare data with a larger --min_count"
        )
    return iter(dict.fromkeys(dynamic[table] for table in tables or dynamic))


def _plan(checkpoint: Path, metadata: Mapping[str, Any], rules: Rules, name: str) -> Pruning:
    sums = LoadedSums(checkpoint, metadata)
    arrays = load_arrays(checkpoint, metadata, name, sums)
    policy, tables = policy_of(metadata, name), metadata[NAME][name]["tables"]
    row_bytes = sum(_row_bytes(metadata, table, sums) for table in tables)
    norms = None if rules.min_norm is None else _norms(checkpoint, metadata, tables, sums)
    sums.check(together=False)
    counts, alive = arrays["counts"], arrays["counts"] > 0
    taken = np.zeros(len(counts), bool)
    if rules.min_count is not None:
        taken |= counts < rules.min_count
    if rules.max_age is not None:
        taken |= int(arrays["numbers"][0]) - arrays["last_seen"] > rules.max_age
    if rules.min_norm is not None and norms is not None:
        taken |= norms < rules.min_norm
    gone = np.flatnonzero(taken & alive)
    ids, total = int(np.count_nonzero(alive)), counts.sum(dtype=np.float64)
    kept = without(arrays, gone)
    change = resized(policy, kept, rows_needed(policy, kept))
    share = float(counts[gone].sum(dtype=np.float64) / total) if total else 0.0
    return Pruning(name, tuple(tables), len(counts), row_bytes, ids, gone, share, change)


def _row_bytes(metadata: Mapping[str, Any], table: str, sums: LoadedSums) -> int:
    """Bytes of a row of a table with its optimizer state."""
    total = 0
    for key in ("table", *tables_in(metadata)[table]):
        shape = metadata["arrays"][f"{table}/{key}"]["shape"]
        dtype = sums.dtype(f"tables/{table}/{key}", np.dtype(np.float32))
        total += math.prod(shape[1:]) * dtype.itemsize if shape else 0
    return total


def _norms(
    checkpoint: Path, metadata: Mapping[str, Any], tables: Sequence[str], sums: LoadedSums
) -> Float64[np.ndarray, " R"]:
    """The norm of each row over several tables."""
    squares = 0.0
    for table in tables:
        norms = row_norms(load_array(checkpoint, metadata, table, "table", sums))
        squares = squares + norms.astype(np.float64) ** 2
        release_memory()
    return np.sqrt(np.asarray(squares))
