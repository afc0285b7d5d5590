"""The arrays of an encoded log of requests, mapped into memory: the log may be larger."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from dlrm_jax.data.formats import parquet
from dlrm_jax.data.formats.npy import map_npy
from dlrm_jax.data.preprocessing import vocabulary
from dlrm_jax.errors import UserError
from dlrm_jax.requests.columns import Columns
from dlrm_jax.requests.requests import Requests, Split, split_of

VOCABULARIES = "vocabularies"
"""Name of the directory of vocabularies, beside the arrays."""


def read_vocabularies(directory: Path, columns: Columns) -> dict[str, pl.DataFrame]:
    """The vocabulary of each table.

    Args:
        directory: directory of an `EncodedLog`.
        columns: columns of the log.

    Raises:
        UserError: a file can't be read.
    """
    known = directory / VOCABULARIES
    return {
        table: vocabulary.read_whole(known / f"{number}.parquet")
        for number, table in enumerate(columns.tables)
    }


def read_arrays(directory: Path, columns: Columns) -> tuple[Requests, Split]:
    """Maps the arrays.

    Args:
        directory: directory of the arrays.
        columns: columns of the log.

    Raises:
        UserError: they are damaged.
    """
    try:
        requests = _mapped(directory, columns)
    except UserError as error:
        raise UserError(
            f"{directory} is damaged: {error}. Delete it: it is made of the log again"
        ) from error
    times = requests.times
    return requests, split_of(np.arange(len(requests)) if times is None else times)


def _mapped(directory: Path, columns: Columns) -> Requests:
    """The requests, checked.

    Raises:
        UserError: an array is damaged, or isn't of the same log as the others.
    """
    rows = {}
    for number, table in enumerate(columns.tables):
        path = directory / VOCABULARIES / f"{number}.parquet"
        with parquet.reading(str(path)):
            rows[table] = vocabulary.rows_needed(pl.scan_parquet(path, glob=False))
    lengths, counts = (map_npy(directory / f"{name}.npy") for name in ("lengths", "counts"))
    requests, tokens, candidates = len(lengths), int(lengths.sum()), int(counts.sum())

    def mapped(name: str, size: int) -> np.ndarray:
        array = map_npy(directory / f"{name}.npy")
        if len(array) != size:
            raise UserError(f"{name}.npy has {len(array):,} numbers instead of {size:,}")
        return array

    def ids(part: str, tables: Mapping[str, str], size: int) -> dict[str, np.ndarray]:
        found = {}
        for number, (column, table) in enumerate(tables.items()):
            array = mapped(f"{part}.{number}", size)
            if size and not 0 <= array.min() <= array.max() < rows[table]:
                raise UserError(f"{part}.{number}.npy has ids that its table lacks")
            found[column] = array
        return found

    mapped("counts", requests)
    labels = mapped("labels", candidates)
    if not np.isin(labels, (0, 1)).all():
        raise UserError("labels.npy has labels other than 0 and 1")
    return Requests(
        columns,
        rows,
        ids("history", columns.history, tokens),
        np.concatenate([[0], np.cumsum(lengths)]),
        mapped("history_times", tokens) if columns.is_timed else None,
        ids("candidates", columns.candidates, candidates),
        np.concatenate([[0], np.cumsum(counts)]),
        labels,
        ids("context", columns.context, requests),
        mapped("times", requests) if columns.time else None,
    )
