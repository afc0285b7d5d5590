"""Lookups of stored rows on the host: the vectors of a request's bags, from tables as files."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Int

from dlrm_jax.artifact.row_formats import decode
from dlrm_jax.artifact.stored_tables import StoredTable
from dlrm_jax.errors import UserError
from dlrm_jax.native import quantized_rows, stored_rows
from dlrm_jax.native.thread_count import most_threads


@dataclasses.dataclass(frozen=True)
class StoredLookup:
    """A read of a stored table by some columns of the ids.

    Attributes:
        name: name of its vectors.
        table: table that it reads.
        columns: first column of its bags in the array of ids, and the one after the last.
        pooling: kind of pooling, see `dlrm_jax.embedding.Lookup`.
        floor_divide: number that the ids are divided by before the table is read, rounded down;
            None for as they are.
        remainder: number whose remainder they are replaced by then; None for as they are.
    """

    name: str
    table: StoredTable
    columns: tuple[int, int]
    pooling: Literal["sum", "mean", "none"] = "sum"
    floor_divide: int | None = None
    remainder: int | None = None

    def __post_init__(self) -> None:
        begin, end = self.columns
        if not 0 <= begin < end:
            raise UserError(f"lookup {self.name}: expected columns a < b, got {self.columns}")
        for number in (self.floor_divide, self.remainder):
            if number is not None and number < 1:
                raise UserError(f"lookup {self.name}: expected a map by 1 or more, got {number}")

    @property
    def vectors(self) -> int:
        """Vectors of a sample: 1, or the bag's length without pooling."""
        return self.columns[1] - self.columns[0] if self.pooling == "none" else 1

    def rows_of(self, ids: Int[np.ndarray, "n L"]) -> Int[np.ndarray, "n L"]:
        """Row numbers of ids; -1 for those that are absent."""
        rows = ids if self.floor_divide is None else ids // self.floor_divide
        rows = rows if self.remainder is None else rows % self.remainder
        return np.where(ids < 0, -1, rows)


class RowPooling:
    """The lookups of a model, all of them in one call.

    Rows are gathered, decoded and pooled in one pass by the native kernels if they are built, else
    in NumPy, to the same bits. Several threads may call one object.

    Args:
        lookups: lookups; their vectors stand side by side in this order.
        threads: most threads of a call; None for one on each processor. Small batches use one.
        columns: columns of each lookup's vectors in the result, for some of the lookups of a model;
            None for side by side.
    """

    def __init__(
        self,
        lookups: Sequence[StoredLookup],
        threads: int | None = None,
        columns: Mapping[str, slice] | None = None,
    ):
        if not lookups:
            raise UserError("lookups: expected at least one")
        names = [lookup.name for lookup in lookups]
        if repeated := sorted({x for x in names if names.count(x) > 1}):
            raise UserError(f"lookups: {repeated[0]!r} is there twice")
        self.lookups = tuple(lookups)
        self.threads = most_threads(threads)
        self.id_columns = max(lookup.columns[1] for lookup in lookups)
        """Least number of columns of the ids."""
        ends = np.cumsum([x.vectors * x.table.dim for x in lookups]).tolist()
        self.columns: Mapping[str, slice] = columns or {
            x.name: slice(begin, end)
            for x, begin, end in zip(lookups, [0, *ends], ends, strict=False)
        }
        """Columns of each lookup's vectors in the result."""
        self.width: int = max(x.stop for x in self.columns.values())
        """Columns of the result."""
        self._native = (
            _described(self.lookups, self.columns) if quantized_rows.available() else None
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies make their own description, which has addresses of this object's tables."""
        return RowPooling, (self.lookups, self.threads, self.columns)

    def only(self, names: Collection[str]) -> RowPooling:
        """Some of the lookups, which leave the columns of the others in the result as they are."""
        lookups = [lookup for lookup in self.lookups if lookup.name in names]
        return RowPooling(lookups, self.threads, self.columns)

    def __call__(
        self,
        ids: Int[np.ndarray, "n C"],
        weights: Float32[np.ndarray, "n C"] | None = None,
        out: Float32[np.ndarray, "n W"] | None = None,
    ) -> Float32[np.ndarray, "n W"]:
        """The vectors of each sample, [n, `width`]; `split` takes them apart.

        Args:
            ids: ids of the bags, int32 or int64; negative is absent.
            weights: weights of the ids, such as counts; None for ones.
            out: array for the result; None for a new one.

        Raises:
            UserError: an id is beyond its table, or an array has another shape or dtype.
        """
        out = self._check(ids, weights, out)
        if self._native is None:
            for lookup in self.lookups:
                _pool(lookup, ids, weights, out[:, self.columns[lookup.name]])
            return out
        ids = np.ascontiguousarray(ids)
        weights = None if weights is None else np.ascontiguousarray(weights)
        wrong = stored_rows.pool(self._native, ids, weights, out, self.threads)
        if wrong is not None:
            _check_rows(self.lookups[wrong[1]], ids)
        return out

    def split(self, vectors: Float32[np.ndarray, "n W"]) -> dict[str, Float32[np.ndarray, "n *_"]]:
        """The vectors by lookup, [n, dim], or [n, L, dim] without pooling, as views."""
        shapes = {x.name: (x.vectors, x.table.dim) for x in self.lookups if x.pooling == "none"}
        parts = {name: vectors[:, columns] for name, columns in self.columns.items()}
        return {
            name: part.reshape(len(part), *shapes[name]) if name in shapes else part
            for name, part in parts.items()
        }

    def _check(
        self, ids: np.ndarray, weights: np.ndarray | None, out: np.ndarray | None
    ) -> np.ndarray:
        """Checks what the native function wouldn't; returns the array for the result."""
        if ids.ndim != 2 or ids.shape[1] < self.id_columns or ids.dtype not in (np.int32, np.int64):
            raise UserError(
                f"ids: expected int32 or int64 of shape [n, {self.id_columns}], got {ids.dtype} of "
                f"shape {ids.shape}"
            )
        if weights is not None and (weights.shape != ids.shape or weights.dtype != np.float32):
            raise UserError(
                f"weights: expected float32 of shape {ids.shape}, got {weights.dtype} of shape "
                f"{weights.shape}"
            )
        shape = (len(ids), self.width)
        if out is None:
            return aligned(shape)
        if out.shape != shape or out.dtype != np.float32 or not out.flags.carray:
            raise UserError(
                f"out: expected contiguous float32 of shape {shape}, got {out.dtype} of shape "
                f"{out.shape}"
            )
        return out


def aligned(shape: tuple[int, int]) -> np.ndarray:
    """An array that begins with a cache line: vectors lie in fewer, and JAX takes it as it is."""
    size = shape[0] * shape[1]
    memory = np.empty(size + 16, np.float32)
    begin = -memory.ctypes.data % 64 // 4
    return memory[begin : begin + size].reshape(shape)


def _described(lookups: Sequence[StoredLookup], columns: Mapping[str, slice]) -> np.ndarray:
    described = np.zeros(len(lookups), stored_rows.LOOKUP)
    for to, lookup in zip(described, lookups, strict=True):
        table, (begin, end) = lookup.table, lookup.columns
        to["table"] = table.rows.ctypes.data
        to["rows"], to["row_bytes"] = table.rows.shape
        to["dim"] = table.dim
        to["format"] = stored_rows.FORMATS.index(table.row_format)
        to["pooling"] = stored_rows.POOLINGS.index(lookup.pooling)
        to["first_id"], to["length"] = begin, end - begin
        to["first_out"] = columns[lookup.name].start
        to["divisor"], to["modulus"] = lookup.floor_divide or 0, lookup.remainder or 0
    return described


def _check_rows(lookup: StoredLookup, ids: Int[np.ndarray, "n C"]) -> None:
    """Checks that the ids of a lookup are within its table."""
    bags = ids[:, slice(*lookup.columns)]
    rows = lookup.rows_of(bags)
    wrong = rows >= len(lookup.table.rows)
    if wrong.any():
        sample, i = (int(x[0]) for x in np.nonzero(wrong))
        raise UserError(
            f"ids: row {sample}, column {lookup.columns[0] + i} of lookup {lookup.name}: got "
            f"{bags[sample, i]}, but table {lookup.table.name} has {len(lookup.table.rows)} rows"
        )


def _pool(
    lookup: StoredLookup,
    ids: Int[np.ndarray, "n C"],
    weights: Float32[np.ndarray, "n C"] | None,
    out: Float32[np.ndarray, "n w"],
) -> None:
    """One lookup in NumPy; sums run in the order of the ids, as in stored_rows.cc."""
    _check_rows(lookup, ids)
    table, own = lookup.table, slice(*lookup.columns)
    rows = lookup.rows_of(ids[:, own])
    present: Bool[np.ndarray, "n L"] = rows >= 0
    factors = present.astype(np.float32) if weights is None else weights[:, own]
    sums = np.zeros((len(ids), lookup.vectors, table.dim), np.float32)
    total = np.zeros(len(ids), np.float32)
    for i in range(rows.shape[1]):
        here = present[:, i]
        vectors = decode(table.rows[rows[here, i]], table.row_format, table.dim)
        sums[here, i % lookup.vectors] += factors[here, i, None] * vectors
        total[here] += factors[here, i]
    if lookup.pooling == "mean":
        sums /= np.where(total == 0, np.float32(np.inf), total)[:, None, None]
    out[...] = sums.reshape(out.shape)
