"""The search of an index by the native kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Int8, Int32, Int64

from dlrm_jax.native import item_scan
from dlrm_jax.native.item_scan import address
from dlrm_jax.retrieval.index import bloom
from dlrm_jax.retrieval.index.attributes import Clause

if TYPE_CHECKING:
    from dlrm_jax.retrieval.index.item_index import ItemIndex


def find(
    index: ItemIndex,
    queries: Int8[np.ndarray, "n w"],
    best: int,
    cells: Int32[np.ndarray, "n p"] | None,
    chosen: Int32[np.ndarray, " n"] | None,
    filters: Sequence[Sequence[Clause]],
    threads: int | None,
) -> tuple[Int64[np.ndarray, "n k"], Float32[np.ndarray, "n k"]]:
    """The best items and their scores, without the scales of the queries.

    Args:
        index: index.
        queries: integers of the queries, as many as `ItemVectors.rows` has.
        best: number of items k.
        cells: cells that each query reads; None for all.
        chosen: filter of each query, negative for none; None if there are none.
        filters: filters.
        threads: most threads; None for one on each processor.
    """
    found = np.empty((len(queries), best), np.int64)
    scores = np.empty((len(queries), best), np.float32)
    compiled = _Compiled(index, filters) if filters else None
    item_scan.find(
        index.described,
        item_scan.Queries(
            *map(address, (queries, cells, chosen)),
            *(compiled.addresses if compiled else (None,) * 4),
            len(queries),
            0 if cells is None else cells.shape[1],
            bloom.HASHES,
            best,
            address(found),
            address(scores),
        ),
        threads,
    )
    return found, scores


def describe(index: ItemIndex) -> item_scan.Index:
    """The addresses of an index's arrays, which must stay alive."""
    attributes = index.attributes.ids if index.attributes is not None else None
    return item_scan.Index(
        *map(address, (index.vectors.blocks, index.vectors.scales, index.vectors.numbers)),
        *map(address, (index.bits, attributes, index.starts)),
        index.vectors.blocks.shape[1],
        0 if index.bits is None else index.bits.shape[1],
        0 if attributes is None else attributes.shape[1],
        index.cells,
    )


class _Compiled:
    """Filters as arrays, as ``Clause`` of item_scan.cc describes them."""

    def __init__(self, index: ItemIndex, filters: Sequence[Sequence[Clause]]):
        clauses, values, positions = [], [np.empty(0, np.int32)], []
        bits = 1 if index.bits is None else index.bits.shape[1]
        first = 0
        for number, ids in (clause for clauses in filters for clause in clauses):
            assert index.attributes is not None
            columns = index.attributes.attributes[number].columns
            clauses.append((*columns, first, first := first + len(ids)))
            values.append(ids)
            positions.append(bloom.positions(number, ids, bits))
        self.starts = np.cumsum([0, *map(len, filters)]).astype(np.int64)
        self.clauses = np.array(clauses, np.int64).reshape(-1, 4)
        self.values = np.concatenate(values)
        self.positions = np.concatenate([np.empty((0, bloom.HASHES), np.int32), *positions])
        arrays = (self.starts, self.clauses, self.values, self.positions)
        self.addresses = [address(array) for array in arrays]
