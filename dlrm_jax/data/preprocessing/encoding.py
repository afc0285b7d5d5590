"""From columns on disk and vocabularies to arrays by day."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int32

from dlrm_jax.data.files import made
from dlrm_jax.data.multi_hot import expand
from dlrm_jax.data.npy import ArrayWriter, BlockWriter, NpzWriter
from dlrm_jax.data.preprocessing import vocabulary
from dlrm_jax.data.preprocessing.columns import finished
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.splits import Day
from dlrm_jax.data.preprocessing.staging import Staged
from dlrm_jax.errors import UserError

# Places of bags that are encoded at a time, 4 bytes each. More cost memory; fewer, time, as every
# vocabulary is hashed each time.
_PLACES = 1 << 27
_ROWS_PER_BLOCK = 1 << 17
_ROWS_IN_CACHE = 1 << 12

_UNSEEN = {"": vocabulary.UNSEEN, "reference": None, "torchrec": 1}


class Encoder:
    """The ids of columns of a file, for rows that are asked for in order.

    Args:
        staged: the file.
        options: of the data.
        vocabularies: for every categorical column a file.
        columns: the columns.
        stop: the row after the last that will be asked for.
    """

    def __init__(
        self,
        staged: Staged,
        options: Options,
        vocabularies: Sequence[Path],
        columns: Sequence[int],
        stop: int,
    ):
        self._staged = staged
        self._options = options
        self._vocabularies = vocabularies
        self._columns = columns
        self._stop = stop
        self._width = sum(options.schema.lengths[i] for i in columns)
        self._rows = max(1, _PLACES // self._width)
        self._first = self._after = 0  # rows whose ids are there
        self._ids: list[np.ndarray] = []

    def __call__(self, start: int, stop: int) -> Int32[np.ndarray, "n C"]:
        """The ids of consecutive rows, those of the columns side by side.

        Raises:
            UserError: a value has no id.
        """
        out = np.empty((stop - start, self._width), np.int32)
        row = start
        while row < stop:
            if not self._first <= row < self._after:
                self._encode(row)
            # Few rows at a time: the columns' ids meet in a core's cache.
            last = min(row + _ROWS_IN_CACHE, stop, self._after)
            parts = [ids[row - self._first : last - self._first] for ids in self._ids]
            np.concatenate(parts, axis=1, out=out[row - start : last - start])
            row = last
        return out

    def of(self, column: int, stop: int) -> Encoder:
        """An encoder of one of the columns."""
        return Encoder(self._staged, self._options, self._vocabularies, [column], stop)

    def _encode(self, row: int) -> None:
        self._first, self._after = row, min(row + self._rows, self._stop)
        self._ids.clear()
        schema = self._options.schema
        unseen = _UNSEEN[self._options.compatible]
        for i in self._columns:
            rows = self._staged.scan().select(raw_values(i, self._options))
            values = rows.slice(row, self._after - row).collect()["value"]
            known = vocabulary.read_for(values, self._vocabularies[i])
            try:
                ids = vocabulary.encode(values, known, schema.lengths[i], unseen)
            except UserError as error:
                raise UserError(f"column {schema.categorical[i]}: {error}") from error
            self._ids.append(ids)


def raw_values(column: int, options: Options) -> pl.Expr:
    """The values of a column of a staged file, as a column ``value``."""
    values = pl.col(f"c{column}").alias("value")
    return values.fill_null(0) if options.compatible else values


def write_day(
    directory: Path,
    number: int,
    day: Day,
    staged: Staged,
    options: Options,
    encoder: Encoder,
    expansions: Sequence[Path],
) -> None:
    """Writes the arrays of one day, in TorchRec's layout; those that are there stay.

    ``day_NUMBER_dense.npy`` float32 [N, D], ``…_labels.npy`` int32 [N, 1], with a weight
    ``…_weights.npy`` float32 [N], and ``…_sparse.npy`` int32 [N, C] or, if a bag has several
    places, ``…_sparse_multi_hot.npz``: ``0.npy``, ``1.npy``, … int32 [N, L].

    Args:
        directory: of the arrays.
        number: of the day.
        day: its rows.
        staged: its file.
        options: of the data.
        encoder: of all columns of the file.
        expansions: per column the table that makes several ids of one; none to leave them.
    """
    schema = options.schema
    tables = [np.load(path, mmap_mode="r") for path in expansions]

    def rows(names: list[str], start: int, stop: int) -> pl.DataFrame:
        return staged.scan().select(names).slice(start, stop - start).collect()

    def dense(start: int, stop: int) -> np.ndarray:
        names = [f"d{i}" for i in range(len(schema.dense))]
        if not names:  # a frame without columns has no rows
            return np.empty((stop - start, 0), np.float32)
        return finished(rows(names, start, stop), options, staged.smallest)

    def column(name: str) -> Callable[[int, int], np.ndarray]:
        return lambda start, stop: rows([name], start, stop)[name].to_numpy()

    def bag(i: int) -> Callable[[int, int], np.ndarray]:
        encode = encoder.of(i, day.stop)
        if not tables:
            return encode
        return lambda start, stop: expand(encode(start, stop)[:, 0], tables[i])

    def append(writer: BlockWriter, read: Callable[[int, int], np.ndarray]) -> None:
        for start in range(day.start, day.stop, _ROWS_PER_BLOCK):
            writer.append(read(start, min(start + _ROWS_PER_BLOCK, day.stop)))

    arrays = [
        ("dense", (len(day), len(schema.dense)), np.float32, dense),
        ("labels", (len(day), 1), np.int32, column("label")),
    ]
    if schema.weight:
        arrays.append(("weights", (len(day),), np.float32, column("weight")))
    one_id = max(options.lengths) == 1
    if one_id:
        arrays.append(("sparse", (len(day), len(schema.categorical)), np.int32, encoder))
    for name, shape, dtype, read in arrays:
        path = directory / f"day_{number}_{name}.npy"
        if not path.exists():
            with made(path) as temporary, ArrayWriter(temporary, shape, dtype) as writer:
                append(writer, read)
    path = directory / f"day_{number}_sparse_multi_hot.npz"
    if not one_id and not path.exists():
        with made(path) as temporary, NpzWriter(temporary) as archive:
            for i, length in enumerate(options.lengths):
                with archive.member(str(i), (len(day), length), np.int32) as writer:
                    append(writer, bag(i))
