"""The files of a trained model: vectors with the values of the log, and an index of the items."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from jaxtyping import Float32, Int32, Int64

from dlrm_jax.data.arrays import Dataset
from dlrm_jax.data.formats.npy import write_npy
from dlrm_jax.errors import UserError
from dlrm_jax.files import replacing
from dlrm_jax.inference.frame_file import write_frames
from dlrm_jax.inference.vocabularies import read_values
from dlrm_jax.retrieval.columns import Side

Index = Literal["none", "usearch"]

USERS, ITEMS = "users.parquet", "items.parquet"
ARRAY, USEARCH = "items.npy", "items.usearch"
SUMMARY = "summary.json"


class Values:
    """The values of a data set's ids, column by column; the ids themselves without vocabularies."""

    def __init__(self, data: Dataset):
        self._data = data
        self._read: dict[int, pl.DataFrame] = {}

    def known(self, feature: int) -> Int64[np.ndarray, " k"] | None:
        """The ids that stand for one value each; None without vocabularies.

        Others are those of missing and of unseen values, and ids that rare values share.
        """
        values = self._of(feature)
        return None if values is None else values["id"].to_numpy().astype(np.int64)

    def decode(self, feature: int, ids: Int32[np.ndarray, " n"]) -> pl.Series:
        """The values of ids, null for those that stand for no value or for several."""
        name = self._data.columns[feature]
        values = self._of(feature)
        if values is None:
            return pl.Series(name, ids).set(pl.Series(ids < 0), None)
        found = pl.DataFrame({"id": ids}).join(values, on="id", how="left", maintain_order="left")
        return found["value"].alias(name)

    def _of(self, feature: int) -> pl.DataFrame | None:
        if self._data.directory is None:
            return None
        if feature not in self._read:
            values = read_values(self._data.directory, feature).filter(
                (pl.col("meaning") == "value") & (pl.len().over("id") == 1)
            )
            self._read[feature] = values.select(pl.col("id").cast(pl.Int32), "value")
        return self._read[feature]


def frame(
    data: Dataset,
    values: Values,
    side: Side,
    ids: Int32[np.ndarray, "n C"],
    vectors: Float32[np.ndarray, "n d"],
) -> pl.DataFrame:
    """The values of a side's columns of one id, and ``vector``, float32 [d]."""
    return values_frame(data, values, side, ids).with_columns(pl.Series("vector", vectors))


def values_frame(
    data: Dataset, values: Values, side: Side, ids: Int32[np.ndarray, "n C"]
) -> pl.DataFrame:
    """The values of a side's columns of one id."""
    columns: list[Any] = []
    place = 0
    for feature in side.features:
        if data.bag_lengths[feature] == 1:
            columns.append(values.decode(feature, ids[:, place]))
        place += data.bag_lengths[feature]
    return pl.DataFrame(columns)


def write_vectors(path: Path, frames: Iterable[pl.DataFrame]) -> None:
    """Writes frames, at least one, to a Parquet file, which replaces an earlier one."""
    with replacing(path) as temporary:
        write_frames(frames, temporary, ".parquet")


def write_array(path: Path, vectors: Float32[np.ndarray, "I d"]) -> None:
    """Writes vectors as ``.npy``, which Faiss adds to an index as they are."""
    with replacing(path) as temporary:
        write_npy(temporary, vectors)


def check_free(workdir: Path) -> None:
    """Checks that a new run would replace no file of a user.

    Raises:
        UserError: a file that the run writes at its end is there.
    """
    for name in (USERS, ITEMS, ARRAY, USEARCH, SUMMARY):
        if (path := workdir / name).exists():
            raise UserError(
                f"{path} exists, and the workdir has no checkpoints of a run that made it; move "
                f"it, or give another workdir"
            )


def check_index(index: Index) -> None:
    """Checks that the library of an index is there.

    Raises:
        UserError: it isn't installed.
    """
    if index == "usearch" and importlib.util.find_spec("usearch") is None:
        raise UserError(
            "index: usearch isn't installed; install it by pip install usearch, or leave --index "
            "out: Faiss reads items.npy"
        )


def write_index(path: Path, vectors: Float32[np.ndarray, "I d"]) -> None:
    """Writes an approximate index of USearch by the product of vectors; keys are row numbers."""
    from usearch.index import Index as Graph  # only here: it is an extra

    graph = Graph(ndim=vectors.shape[1], metric="ip", dtype="f32")
    graph.add(np.arange(len(vectors), dtype=np.uint64), vectors)
    with replacing(path) as temporary:
        graph.save(str(temporary))
