"""The index: the best items of queries, by products of vectors, among those that pass a filter."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float, Float32, Int32, Int64, UInt32

from dlrm_jax.embedding.table import check_whole
from dlrm_jax.errors import UserError, shown
from dlrm_jax.native.item_scan import BLOCK, Index
from dlrm_jax.native.quantized_rows import available
from dlrm_jax.retrieval.index import bloom
from dlrm_jax.retrieval.index.attributes import Attributes, Clause
from dlrm_jax.retrieval.index.cells import default_cells, find_cells
from dlrm_jax.retrieval.index.jax_search import JaxSearch
from dlrm_jax.retrieval.index.native_search import describe, find
from dlrm_jax.retrieval.index.vectors import ItemVectors, in_cells, in_order, queries_of

Kind = Literal["flat", "ivf"]
"""Kind of an index: every query reads all items, or those of the cells that are nearest to it."""

_MOST_PLACES = 1 << 16  # those without an item are memory, too

Filters = Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None
"""One filter for all queries, or one for each, see `Attributes.filter`."""


class Found(NamedTuple):
    """The best items of each query, the best one first.

    Attributes:
        items: numbers of the items; -1 where no more items pass the filter.
        scores: products of the vectors as they are stored; -inf where there is no item. Of equal
            scores, the item with the lowest number comes first.
    """

    items: Int64[np.ndarray, "n k"]
    scores: Float32[np.ndarray, "n k"]


@dataclasses.dataclass(frozen=True, eq=False)
class ItemIndex:
    """Items that are searched.

    Attributes:
        vectors: vectors of the items, cell by cell.
        starts: first block of each of the C cells, and the end of all; a flat index has one cell.
        centroids: vectors of the cells; None for a flat index.
        attributes: attributes of the items by place; None without any.
        bits: Bloom filters of the items, see `bloom`; None without attributes.
        probes: cells that a query reads unless it says another number.
    """

    vectors: ItemVectors
    starts: Int64[np.ndarray, " S"]
    centroids: ItemVectors | None = None
    attributes: Attributes | None = None
    bits: UInt32[np.ndarray, "B bits"] | None = None
    probes: int = 1

    @classmethod
    def build(
        cls,
        vectors: Float32[np.ndarray, "I d"],
        attributes: Attributes | None = None,
        kind: Kind = "flat",
        cells: int = 0,
        probes: int = 16,
    ) -> ItemIndex:
        """Makes an index.

        Args:
            vectors: vectors of the items.
            attributes: attributes of the items.
            kind: kind of the index.
            cells: number of cells of an ``ivf`` index; 0 for twice the root of the items.
            probes: cells that a query reads by default.

        Raises:
            UserError: there are no items, or fewer than cells, or a number isn't finite; or an
                argument is out of range.
        """
        check_whole("cells", cells, 0)
        check_whole("probes", probes, 1)
        if kind not in get_args(Kind):
            raise UserError(f"kind: expected {' or '.join(get_args(Kind))}, got {shown(kind)}")
        if not len(vectors) or not np.isfinite(vectors).all():
            raise UserError("vectors: expected one or more, of finite numbers")
        if cells > len(vectors):
            raise UserError(f"cells: expected at most the {len(vectors):,} items, got {cells:,}")
        if kind == "flat":
            places = in_order(len(vectors))
            starts = np.array([0, len(places) // BLOCK], np.int64)
            return cls._arranged(vectors, attributes, places, starts, None, 1)
        directions, of_items = find_cells(vectors, cells or default_cells(len(vectors)))
        return cls.in_cells(vectors, attributes, directions, of_items, probes)

    @classmethod
    def in_cells(
        cls,
        vectors: Float32[np.ndarray, "I d"],
        attributes: Attributes | None,
        directions: Float32[np.ndarray, "C d"],
        of_items: Int32[np.ndarray, " I"],
        probes: int,
    ) -> ItemIndex:
        """Makes an index of items whose cells are known; see `build`.

        Args:
            vectors: vectors of the items.
            attributes: attributes of the items.
            directions: centroids of the cells.
            of_items: cell of each item.
            probes: cells that a query reads by default.
        """
        count = len(directions)
        places, starts = in_cells(of_items, count)
        centroids = ItemVectors.of(directions, in_order(count)) if count > 1 else None
        return cls._arranged(vectors, attributes, places, starts, centroids, min(probes, count))

    @classmethod
    def _arranged(
        cls,
        vectors: Float32[np.ndarray, "I d"],
        attributes: Attributes | None,
        places: Int32[np.ndarray, " P"],
        starts: Int64[np.ndarray, " S"],
        centroids: ItemVectors | None,
        probes: int,
    ) -> ItemIndex:
        bits = None
        if attributes is not None and attributes.attributes:
            attributes = attributes.at(places)
            columns = [x.columns for x in attributes.attributes]
            width = bloom.default_bits(attributes.ids.shape[1])
            bits = bloom.make_bits(attributes.ids, columns, width)
        stored = ItemVectors.of(vectors, places)
        return cls(stored, starts, centroids, attributes, bits, probes)

    @functools.cached_property
    def items(self) -> int:
        """The number of items."""
        return int(self.vectors.numbers.max()) + 1

    @property
    def cells(self) -> int:
        """The number of cells."""
        return len(self.starts) - 1

    def search(
        self,
        queries: Float[np.ndarray, "n d"],
        k: int,
        filters: Filters = None,
        probes: int | None = None,
        threads: int | None = None,
    ) -> Found:
        """The k best items of each query.

        Items are read by the native kernel if it is built, else in JAX, with the same answers.

        Args:
            queries: vectors of users.
            k: number of items; there are places without an item if fewer pass the filter. It may
                be more than the items have, up to 65,536.
            filters: filters, see `Filters`.
            probes: cells that each query reads; None for that of the index, all of them for an
                answer among all items.
            threads: most threads of the native kernel; None for one on each processor.

        Raises:
            UserError: an argument is out of range, or a filter names what isn't there.
        """
        for name, number in (("k", k), ("probes", probes), ("threads", threads)):
            if number is not None or name == "k":
                check_whole(name, number, 1)
        if k > (most := max(self.items, _MOST_PLACES)):
            raise UserError(
                f"k: expected at most {most:,} of an index of {self.items:,} items, got {shown(k)}"
            )
        if not (filters is None or isinstance(filters, Mapping | Sequence)):
            raise UserError(
                f"filters: expected attributes by name, or a list with those of each query, got "
                f"{shown(filters)}"
            )
        integers, scales = queries_of(self._checked(queries))
        chosen, compiled = self._compiled(filters, len(queries))
        probes = self.probes if probes is None else min(probes, self.cells)
        cells = None
        if self.centroids is not None and probes < self.cells and len(queries):
            cells = self._of_cells.nearest(integers, probes, threads)
        k = int(k)  # NumPy's
        best = min(k, self.items)
        search = find if available() else self._in_jax
        found, scores = search(self, integers, best, cells, chosen, compiled, threads)
        scores = scores * scales[:, None]  # none is 0, so -inf stays
        if best == k:
            return Found(found, scores)
        rest = [(0, 0), (0, k - best)]
        return Found(
            np.pad(found, rest, constant_values=-1),
            np.pad(scores, rest, constant_values=np.float32(-np.inf)),
        )

    def nearest(
        self, integers: np.ndarray, count: int, threads: int | None
    ) -> Int32[np.ndarray, "n count"]:
        """The numbers of the best items of quantized queries, without filters."""
        search = find if available() else self._in_jax
        found, _ = search(self, integers, count, None, None, (), threads)
        return found.astype(np.int32)

    @functools.cached_property
    def _of_cells(self) -> ItemIndex:
        """The centroids as an index of their own."""
        assert self.centroids is not None
        blocks = len(self.centroids.blocks)
        return ItemIndex(self.centroids, np.array([0, blocks], np.int64))

    @functools.cached_property
    def described(self) -> Index:
        """What the native kernel reads."""
        return describe(self)

    @functools.cached_property
    def _in_jax(self) -> JaxSearch:
        return JaxSearch(self.vectors, self.starts)

    def _checked(self, queries: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
        """Queries as the search reads them."""
        dim = self.vectors.dim
        if queries.ndim != 2 or queries.shape[1] != dim:
            raise UserError(
                f"queries: expected vectors of shape [n, {dim}], got shape {queries.shape}"
            )
        with np.errstate(over="ignore"):
            rows = np.ascontiguousarray(queries, np.float32)
        is_finite = np.isfinite(rows)
        if not is_finite.all():
            row, column = np.argwhere(~is_finite)[0]
            raise UserError(
                f"queries: expected finite numbers of float32, got {queries[row, column]} in row "
                f"{row}, column {column}"
            )
        return rows

    def _compiled(
        self, filters: Filters, count: int
    ) -> tuple[Int32[np.ndarray, " n"] | None, tuple[tuple[Clause, ...], ...]]:
        """The filter of each query, -1 for none, and the different filters."""
        if filters is None:
            return None, ()
        each = [filters] * count if isinstance(filters, Mapping) else list(filters)
        if len(each) != count:
            raise UserError(f"filters: expected one for each of {count} queries, got {len(each)}")
        attributes = self.attributes or Attributes(np.empty((self.items, 0), np.int32), ())
        numbers: dict[int, int] = {}
        found: list[tuple[Clause, ...]] = []
        chosen = np.full(count, -1, np.int32)
        for query, wanted in enumerate(each):
            if not wanted:
                continue
            if id(wanted) not in numbers:
                numbers[id(wanted)] = len(found)
                found.append(attributes.filter(wanted))
            chosen[query] = numbers[id(wanted)]
        return (chosen, tuple(found)) if found else (None, ())
