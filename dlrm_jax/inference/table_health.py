"""The health of the tables of a checkpoint: rows that ids have, that were trained, how, and when.

No model is made, so a checkpoint of any model will do. One array of a table is in memory at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt32

from dlrm_jax.dynamic_ids.resizing import Arrays
from dlrm_jax.training.checksums import LoadedSums
from dlrm_jax.training.saved_arrays import load_array, tables_in
from dlrm_jax.training.saved_id_maps import load_arrays, map_of_table

QUANTILES = (0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1)

_BLOCK = 1 << 16  # rows that are worked on at a time

Quantiles = tuple[float, ...] | None
"""The `QUANTILES` of numbers: of each, the smallest number that this share doesn't exceed. None of
no numbers."""


@dataclasses.dataclass(frozen=True)
class TableHealth:
    """What a checkpoint says of a table.

    Attributes:
        table: name of the table.
        rows: number of rows.
        dim: width of a row.
        bytes: bytes of the table and its optimizer state.
        ids: number of rows that ids have. None without dynamic ids: all rows count then, below.
        untrained: number of rows of ids whose optimizer state is zero, as before the first update;
            None of a table without such state.
        not_finite: number of rows that have a number that isn't finite.
        norms: Euclidean norms of the finite rows of ids.
        counts: number of times that each id was seen since it has its row.
        ages: time since each id was seen last, in units of the clock of the run.
        top_1_percent: share of the counts that the most frequent 1 % of the ids have, one at least.
        top_10_percent: share that the most frequent 10 % have.
    """

    table: str
    rows: int
    dim: int
    bytes: int
    ids: int | None
    untrained: int | None
    not_finite: int
    norms: Quantiles
    counts: Quantiles
    ages: Quantiles
    top_1_percent: float | None
    top_10_percent: float | None


def table_health(checkpoint: Path, metadata: Mapping[str, Any]) -> Iterator[TableHealth]:
    """Looks at the tables of a checkpoint one after the other.

    Args:
        checkpoint: directory of the checkpoint.
        metadata: result of `metadata.read_metadata`.

    Raises:
        UserError: it can't be read.
        DamagedCheckpointError: files are missing or damaged.
    """
    for table, keys in tables_in(metadata).items():
        sums = LoadedSums(checkpoint, metadata)
        vectors = load_array(checkpoint, metadata, table, "table", sums)
        (rows, dim), size = vectors.shape, vectors.nbytes
        norms = row_norms(vectors)
        del vectors
        touched: np.ndarray | None = None
        for key in keys:
            slot = load_array(checkpoint, metadata, table, key, sums)
            size += slot.nbytes
            if slot.ndim:
                own = _is_set(slot)
                touched = own if touched is None else touched | own
        name = map_of_table(metadata, table)
        of_ids = load_arrays(checkpoint, metadata, name, sums) if name is not None else None
        sums.check(together=False)
        has_id = np.ones(rows, bool) if of_ids is None else of_ids["counts"] > 0
        finite = np.isfinite(norms)
        counts, ages = (None, None) if of_ids is None else _counts_and_ages(of_ids)
        yield TableHealth(
            table,
            rows,
            dim,
            size,
            None if of_ids is None else int(np.count_nonzero(has_id)),
            None if touched is None else int(np.count_nonzero(has_id & ~touched)),
            int(np.count_nonzero(~finite)),
            quantiles(norms[has_id & finite]),
            None if counts is None else quantiles(counts),
            None if ages is None else quantiles(ages),
            None if counts is None else _share_of_most_frequent(counts, 0.01),
            None if counts is None else _share_of_most_frequent(counts, 0.1),
        )


def quantiles(numbers: Shaped[np.ndarray, " n"]) -> Quantiles:
    """The `QUANTILES` of some numbers; None of none.

    Args:
        numbers: numbers, all finite.
    """
    if not len(numbers):
        return None
    return tuple(np.quantile(numbers, QUANTILES, method="inverted_cdf").tolist())


def row_norms(vectors: Shaped[np.ndarray, "R d"]) -> Float32[np.ndarray, " R"]:
    """The Euclidean norm of each row; it isn't finite where the row isn't, or the norm too large.

    Args:
        vectors: rows of any floating dtype.
    """
    found = np.zeros(len(vectors), np.float32)
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK].astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            found[start : start + _BLOCK] = np.sqrt(np.einsum("rd,rd->r", block, block))
    return found


def _is_set(slot: Shaped[np.ndarray, "R *d"]) -> Bool[np.ndarray, " R"]:
    """Rows with an optimizer state that isn't zero."""
    return (slot != 0).reshape(len(slot), -1).any(axis=1)


def _counts_and_ages(of_ids: Arrays) -> tuple[np.ndarray, np.ndarray]:
    live = of_ids["counts"] > 0
    clock = int(of_ids["numbers"][0])
    return of_ids["counts"][live], clock - of_ids["last_seen"][live]


def _share_of_most_frequent(counts: UInt32[np.ndarray, " n"], share: float) -> float | None:
    if not len(counts):
        return None
    number = max(1, round(share * len(counts)))
    most = np.partition(counts, len(counts) - number)[len(counts) - number :]
    return float(most.sum(dtype=np.float64) / counts.sum(dtype=np.float64))
