"""Writes the arrays of one day."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from dlrm_jax.data.formats.npy import ArrayWriter, NpzWriter
from dlrm_jax.data.id_ranges import IdRanges, note
from dlrm_jax.data.multi_hot import expand
from dlrm_jax.data.preprocessing.columns import label_arrays, label_columns, transform_dense
from dlrm_jax.data.preprocessing.encoding import Encoder
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.splits import Day
from dlrm_jax.data.preprocessing.staging import Staged
from dlrm_jax.data.preprocessing.standardization import Scales
from dlrm_jax.files import replacing

_CHUNK_ROWS = 1 << 17


def write_day(
    directory: Path,
    number: int,
    day: Day,
    staged: Staged,
    options: Options,
    encoders: Sequence[Encoder],
    expansions: Sequence[Path],
    scales: Scales,
) -> dict[str, Any]:
    """Writes the arrays of one day, in TorchRec's layout; existing files stay.

    ``day_NUMBER_dense.npy`` float32 [N, D], ``…_labels.npy`` int32 [N, 1] or, of several labels,
    float32 [N, H] with NaN for missing ones, with a weight ``…_weights.npy`` float32 [N], for each
    of the groups ``…_group_0.npy`` and so on, int64 [N], of a day that is stored split by split
    ``…_rows.npy`` int64 [N], see `Staged.parts`, and ``…_sparse.npy`` int32 [N, C] or, if a
    bag has several places, ``…_sparse_multi_hot.npz``: ``0.npy``, ``1.npy``, … int32 [N, L]. There
    is an encoder for each range of the day's rows. Expansions are the files of `synthetic_tables`,
    if an id becomes several. Scales are those of the dense columns that are standardized.

    Returns:
        The note of the file of ids, see `id_ranges`; none if it existed.
    """
    schema = options.schema
    tables = [np.load(path, mmap_mode="r") for path in expansions]

    def rows(names: list[str], start: int, stop: int) -> pl.DataFrame:
        return staged.scan().select(names).slice(start, stop - start).collect()

    def dense(start: int, stop: int) -> np.ndarray:
        names = [f"d{i}" for i in range(len(schema.dense))]
        if not names:  # a frame without columns has no rows
            return np.empty((stop - start, 0), np.float32)
        return transform_dense(rows(names, start, stop), options, staged.smallest, scales)

    def column(name: str) -> Callable[[int, int], np.ndarray]:
        return lambda start, stop: rows([name], start, stop)[name].to_numpy()

    def bag(i: int, encoder: Encoder, stop: int) -> Callable[[int, int], np.ndarray]:
        encode = encoder.for_column(i, stop)
        if not tables:
            return encode
        return lambda start, stop: expand(encode(start, stop)[:, 0], tables[i])

    def append(
        writer: ArrayWriter,
        reads: Sequence[Callable[[int, int], np.ndarray]],
        seen: IdRanges | None = None,
    ) -> None:
        for read, rows in zip(reads, day.rows, strict=True):
            for start in rows[::_CHUNK_ROWS]:
                chunk = read(start, min(start + _CHUNK_ROWS, rows.stop))
                writer.append(chunk)
                if seen:
                    seen.add(chunk)

    def several(start: int, stop: int) -> np.ndarray:
        return label_arrays(rows(label_columns(schema), start, stop), schema)

    count = len(schema.labels)
    labels = ("labels", (len(day), 1), np.int32, column("label"))
    if count > 1:
        labels = ("labels", (len(day), count), np.float32, several)
    arrays = [
        ("dense", (len(day), len(schema.dense)), np.float32, dense),
        labels,
    ]
    if schema.weight:
        arrays.append(("weights", (len(day),), np.float32, column("weight")))
    for i in range(len(schema.groups)):
        arrays.append((f"group_{i}", (len(day),), np.int64, column(f"group{i}")))
    if staged.parts:
        arrays.append(("rows", (len(day),), np.int64, column("row")))
    for name, shape, dtype, read in arrays:
        path = directory / f"day_{number}_{name}.npy"
        if not path.exists():
            with replacing(path) as temporary, ArrayWriter(temporary, shape, dtype) as writer:
                append(writer, [read] * len(day.rows))

    one_id = max(options.lengths) == 1
    path = directory / f"day_{number}_{'sparse.npy' if one_id else 'sparse_multi_hot.npz'}"
    if path.exists():
        return {}
    seen = [IdRanges([length]) for length in options.lengths]
    if one_id:
        seen = [IdRanges(options.lengths)]
        shape = (len(day), len(options.lengths))
        with replacing(path) as temporary, ArrayWriter(temporary, shape, np.int32) as writer:
            append(writer, encoders, seen[0])
    else:
        with replacing(path) as temporary, NpzWriter(temporary) as archive:
            for i, length in enumerate(options.lengths):
                with archive.member(str(i), (len(day), length), np.int32) as writer:
                    pairs = zip(encoders, day.rows, strict=True)
                    bags = [bag(i, encoder, rows.stop) for encoder, rows in pairs]
                    append(writer, bags, seen[i])
    return {path.name: note(path, [pair for each in seen for pair in each.ranges()])}
