"""The rows of trained tables: their norms, those that nothing reads, and those read most."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int64

from dlrm_jax.data.statistics import Column
from dlrm_jax.inference.predictor import Predictor

_QUANTILES = (0, 0.5, 0.99, 1)


@dataclasses.dataclass(frozen=True)
class HotRow:
    """A row that training reads often.

    Attributes:
        row: number of the row.
        reads: number of times that the training split looks it up.
        share: reads over those of the whole table.
        norm: Euclidean norm of the row.
    """

    row: int
    reads: int
    share: float
    norm: float


@dataclasses.dataclass(frozen=True)
class TableRows:
    """The rows of a table.

    Attributes:
        table: name of the table.
        owner: name of the feature that the table belongs to.
        rows: number of rows.
        dim: numbers of a row.
        norms: smallest, median, 99 % quantile and largest of the rows' Euclidean norms.
        zero: number of rows that are zero.
        unread: number of rows that the training split never looks up; None if the data aren't
            there. Training with ``unseen_rate`` reads the row of unseen values besides.
        median_unread_norm: median norm of these rows; NaN without any.
        hot: rows that are read most, in descending order; none without the data.
    """

    table: str
    owner: str
    rows: int
    dim: int
    norms: tuple[float, float, float, float]
    zero: int
    unread: int | None
    median_unread_norm: float
    hot: tuple[HotRow, ...]


def table_rows(
    predictor: Predictor, columns: Sequence[Column] | None, most: int
) -> Iterator[TableRows]:
    """Looks at the tables of a model one after the other.

    Tables stay split over the devices. One number a row comes to the host.

    Args:
        predictor: model.
        columns: statistics of the training data by feature, in the order of the model's; None if
            the data aren't there.
        most: number of hot rows.
    """
    collection = predictor.learner.collection
    reads = None if columns is None else _reads(predictor, columns)
    owner_of = {x.table: predictor.config.table_of[x.feature] for x in collection.lookups}
    for table, key, array in collection.iter_arrays(predictor.state.embedding):
        if key != "table":
            continue
        norms = np.asarray(_norms(array))
        del array
        of_table = None if reads is None else reads[table.name]
        never = None if of_table is None else of_table == 0
        unread_norms = norms[:0] if never is None else norms[never]
        yield TableRows(
            table.name,
            owner_of[table.name],
            table.rows,
            table.dim,
            tuple(np.quantile(norms, _QUANTILES).tolist()),
            int(np.count_nonzero(norms == 0)),
            None if never is None else int(np.count_nonzero(never)),
            float(np.median(unread_norms)) if len(unread_norms) else float("nan"),
            () if of_table is None else tuple(_hot(of_table, norms, most)),
        )


@jax.jit
def _norms(table: Float[Array, "R d"]) -> Float32[Array, " R"]:
    return jnp.sqrt(jnp.sum(jnp.square(table.astype(jnp.float32)), axis=1))


def _reads(
    predictor: Predictor, columns: Sequence[Column]
) -> Mapping[str, Int64[np.ndarray, " R"]]:
    """The number of times that training reads each row, by table."""
    config, collection = predictor.config, predictor.learner.collection
    by_owner: dict[str, dict[int, np.ndarray]] = {}
    for name, column in zip(config.table_names, columns, strict=True):
        # Columns that share a vocabulary share their counts, too.
        counts = by_owner.setdefault(config.table_of[name], {})
        counts[id(column.occurrences)] = column.occurrences
    found: dict[str, np.ndarray] = {}
    for lookup in collection.lookups:
        if lookup.table in found:  # another feature of the same counts
            continue
        each = [*by_owner[config.table_of[lookup.feature]].values()]
        reads = np.sum(each, axis=0) if len(each) > 1 else each[0]
        rows = collection.tables[lookup.table].rows
        if lookup.id_map is not None:  # of a compressed table
            mapped = np.asarray(lookup.id_map(np.arange(len(reads))))
            reads = np.bincount(mapped, reads, minlength=rows).astype(np.int64)
        found[lookup.table] = reads
    return found


def _hot(
    reads: Int64[np.ndarray, " R"], norms: Float32[np.ndarray, " R"], most: int
) -> Iterator[HotRow]:
    total = int(reads.sum())
    read = np.flatnonzero(reads)
    for row in read[np.argsort(-reads[read], kind="stable")[:most]].tolist():
        yield HotRow(row, int(reads[row]), int(reads[row]) / total, float(norms[row]))
