"""From columns on disk and vocabularies to arrays by day."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from dlrm_jax.data.multi_hot import expand
from dlrm_jax.data.npy import ArrayWriter, BlockWriter, NpzWriter
from dlrm_jax.data.preprocessing import vocabulary
from dlrm_jax.data.preprocessing.columns import finished
from dlrm_jax.data.preprocessing.files import made
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.splits import Day
from dlrm_jax.data.preprocessing.staging import Staged

# Places of bags that are joined with a vocabulary at a time. More cost memory; fewer, time, as the
# vocabulary is hashed each time.
_PLACES_PER_JOIN = 1 << 23
_ROWS_PER_BLOCK = 1 << 17


def encode_column(
    staged: Staged,
    column: pl.Expr,
    length: int,
    vocabulary_path: Path,
    path: Path,
    unseen: int | None = vocabulary.UNSEEN,
) -> None:
    """Writes the ids of one column of one file: int32 [N, L], row by row.

    Args:
        staged: the file.
        column: of the file, under the name ``value``.
        length: L, places of a bag.
        vocabulary_path: of the column.
        path: to write to; nothing is done if it exists.
        unseen: as for `vocabulary.encode`.
    """
    if path.exists():
        return
    values = pl.read_parquet(vocabulary_path)
    with made(path) as temporary, temporary.open("wb") as file:
        count = max(1, _PLACES_PER_JOIN // length)
        for start in range(0, staged.rows, count):
            part = staged.scan().select(column).slice(start, count).collect()
            file.write(vocabulary.encode(part["value"], values, length, unseen).data)


def write_day(
    directory: Path,
    number: int,
    day: Day,
    staged: Staged,
    options: Options,
    ids: Sequence[Path],
    expansions: Sequence[Path],
) -> None:
    """Writes the arrays of one day, in TorchRec's layout.

    ``day_NUMBER_dense.npy`` float32 [N, D], ``…_labels.npy`` int32 [N, 1], with a weight
    ``…_weights.npy`` float32 [N], and ``…_sparse.npy`` int32 [N, C] or, if a bag has several
    places, ``…_sparse_multi_hot.npz``: ``0.npy``, ``1.npy``, … int32 [N, L].

    Args:
        directory: of the arrays.
        number: of the day.
        day: its rows.
        staged: its file.
        options: of the data.
        ids: what `encode_column` wrote, one per categorical column.
        expansions: per column the table that makes several ids of one; none to leave them.
    """
    schema = options.schema
    maps = [
        np.memmap(path, np.int32, mode="r").reshape(-1, length)
        for path, length in zip(ids, schema.lengths, strict=True)
    ]
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
        if not tables:
            return lambda start, stop: maps[i][start:stop]
        return lambda start, stop: expand(maps[i][start:stop, 0], tables[i])

    def sparse(start: int, stop: int) -> np.ndarray:
        return np.concatenate([array[start:stop] for array in maps], axis=1)

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
        arrays.append(("sparse", (len(day), len(maps)), np.int32, sparse))
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
