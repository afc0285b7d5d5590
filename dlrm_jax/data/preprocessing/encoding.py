"""From columns on disk and vocabularies to arrays by day."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import polars as pl

from dlrm_jax.data.npy import ArrayWriter
from dlrm_jax.data.preprocessing import vocabulary
from dlrm_jax.data.preprocessing.files import made
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.data.preprocessing.staging import Staged

# Places of bags that are joined with a vocabulary at a time. More cost memory; fewer, time, as the
# vocabulary is hashed each time.
_PLACES_PER_JOIN = 1 << 23
_ROWS_PER_BLOCK = 1 << 17


@dataclasses.dataclass(frozen=True)
class Day:
    """Consecutive rows of one file that make one set of arrays.

    Attributes:
        file: index of the file.
        start: its first row.
        stop: the row after its last.
    """

    file: int
    start: int
    stop: int


def encode_column(
    staged: Staged, column: str, length: int, vocabulary_path: Path, path: Path
) -> None:
    """Writes the ids of one column of one file: int32 [N, L], row by row.

    Args:
        staged: the file.
        column: such as ``c0``.
        length: L, places of a bag.
        vocabulary_path: of the column.
        path: to write to; nothing is done if it exists.
    """
    if path.exists():
        return
    values = pl.read_parquet(vocabulary_path)
    with made(path) as temporary, temporary.open("wb") as file:
        count = max(1, _PLACES_PER_JOIN // length)
        for start in range(0, staged.rows, count):
            part = staged.scan().select(column).slice(start, count).collect()
            file.write(vocabulary.encode(part[column], values, length).data)


def write_day(
    directory: Path,
    number: int,
    day: Day,
    staged: Staged,
    schema: Schema,
    ids: Sequence[Path],
) -> None:
    """Writes the arrays of one day, in TorchRec's layout.

    ``day_NUMBER_dense.npy`` float32 [N, D], ``…_sparse.npy`` int32 [N, C], ``…_labels.npy`` int32
    [N, 1] and, with a weight, ``…_weights.npy`` float32 [N].

    Args:
        directory: of the arrays.
        number: of the day.
        day: its rows.
        staged: its file.
        schema: of the columns.
        ids: what `encode_column` wrote, one per categorical column; C = Σ L.
    """
    rows, lengths = day.stop - day.start, schema.lengths
    maps = [
        np.memmap(path, np.int32, mode="r").reshape(-1, length)
        for path, length in zip(ids, lengths, strict=True)
    ]

    def dense(start: int, stop: int) -> np.ndarray:
        columns = [f"d{i}" for i in range(len(schema.dense))]
        return staged.scan().select(columns).slice(start, stop - start).collect().to_numpy()

    def column(name: str) -> Callable[[int, int], np.ndarray]:
        def read(start: int, stop: int) -> np.ndarray:
            return staged.scan().select(name).slice(start, stop - start).collect()[name].to_numpy()

        return read

    def sparse(start: int, stop: int) -> np.ndarray:
        return np.concatenate([array[start:stop] for array in maps], axis=1)

    arrays = [
        ("dense", (rows, len(schema.dense)), np.float32, dense),
        ("sparse", (rows, sum(lengths)), np.int32, sparse),
        ("labels", (rows, 1), np.int32, column("label")),
    ]
    if schema.weight:
        arrays.append(("weights", (rows,), np.float32, column("weight")))
    for name, shape, dtype, read in arrays:
        path = directory / f"day_{number}_{name}.npy"
        if path.exists():
            continue
        with ExitStack() as stack:
            temporary = stack.enter_context(made(path))
            writer = stack.enter_context(ArrayWriter(temporary, shape, dtype))
            for start in range(day.start, day.stop, _ROWS_PER_BLOCK):
                writer.append(read(start, min(start + _ROWS_PER_BLOCK, day.stop)))
