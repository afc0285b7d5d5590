"""Writes tables of a checkpoint as files for other programs, with the raw values of their rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from jaxtyping import Float32

from dlrm_jax.data.formats.npy import write_npy
from dlrm_jax.errors import UserError
from dlrm_jax.feature_names import file_name
from dlrm_jax.inference.frame_file import write_frames
from dlrm_jax.training.checksums import LoadedSums
from dlrm_jax.training.saved_id_maps import map_of_table
from dlrm_jax.training.serialization import array_name, load_rows

Format = Literal["parquet", "npy"]

_ROWS_PER_FRAME = 1 << 18


def write_table(
    checkpoint: Path,
    metadata: Mapping[str, Any],
    table: str,
    values: pl.DataFrame | None,
    directory: Path,
    file_format: Format,
) -> list[Path]:
    """Writes the vectors of one table; only this table is in memory.

    Args:
        checkpoint: directory of the checkpoint, named by its step.
        metadata: metadata of the checkpoint, from `metadata.read_metadata`.
        table: name of the table.
        values: meanings of its ids, from `vocabularies.read_values`; None if unknown.
        directory: directory for the files.
        file_format: ``"parquet"`` writes ``TABLE.parquet`` with a line for each value, by ascending
            id: ``value`` as in the vocabulary, ``meaning``, ``id`` and ``vector``, float32 [dim].
            The meaning is ``"value"``; without a value it is ``"unseen"``, ``"missing"``, or
            ``"unused"`` for an id that nothing has. ``"npy"`` writes ``TABLE.npy``, float32
            [rows, dim], and ``TABLE.values.parquet`` with the other columns. Without values, value,
            meaning and that file are omitted. In names of files, / is %2F and % is %25.

    Returns:
        The paths of the files.

    Raises:
        UserError: there is no such table, it is damaged, or the ids aren't its rows.
        OSError: the files can't be written.
    """
    vectors = _read_vectors(checkpoint, metadata, table)
    lines = _lines(table, len(vectors), values)
    if file_format == "parquet":
        path = directory / f"{file_name(table)}.parquet"
        write_frames(_with_vectors(lines, vectors), path, ".parquet")
        return [path]
    paths = [directory / f"{file_name(table)}.npy"]
    write_npy(paths[0], vectors)
    if values is not None:
        paths.append(directory / f"{file_name(table)}.values.parquet")
        write_frames([lines], paths[1], ".parquet")
    return paths


def _read_vectors(
    checkpoint: Path, metadata: Mapping[str, Any], table: str
) -> Float32[np.ndarray, "rows dim"]:
    entry = metadata["arrays"].get(f"{table}/{array_name(metadata, 'table')}")
    if entry is None:
        raise UserError(f"checkpoint {checkpoint} has no table {table!r}")
    if map_of_table(metadata, table):
        raise UserError(
            f"table {table} of {checkpoint}: expected one whose ids are rows, but they are dynamic "
            f"there; export the run: keys/ and tables/ of an artifact have the ids and their "
            f"vectors"
        )
    spec = np.broadcast_to(np.float32(0), entry["shape"])  # a shape and type without memory
    sums = LoadedSums(checkpoint, metadata)
    loaded = load_rows(checkpoint, metadata, table, {"table": spec}, sums)["table"]
    sums.check(together=False)
    return np.asarray(loaded)


def _lines(table: str, rows: int, values: pl.DataFrame | None) -> pl.DataFrame:
    """One line per id and value; ids without a value have one line, too."""
    ids = pl.DataFrame({"id": np.arange(rows, dtype=np.int32)})
    if values is None:
        return ids
    value_ids = values["id"]
    if not value_ids.is_between(0, rows - 1).all():
        raise UserError(
            f"the vocabulary of table {table} has ids from {value_ids.min()} to {value_ids.max()}, "
            f"the table has {rows} rows: they belong to different runs"
        )
    lines = ids.join(values, on="id", how="left", maintain_order="left_right")
    return lines.select("value", pl.col("meaning").fill_null("unused"), "id")


def _with_vectors(
    lines: pl.DataFrame, vectors: Float32[np.ndarray, "rows dim"]
) -> Iterator[pl.DataFrame]:
    for frame in lines.iter_slices(_ROWS_PER_FRAME):
        yield frame.with_columns(pl.Series("vector", vectors[frame["id"].to_numpy()]))
