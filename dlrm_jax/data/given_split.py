"""Reads which rows are for training, validation and test from a file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import UInt8

from dlrm_jax.data.preprocessing.split_rule import PARTS
from dlrm_jax.errors import UserError

# A zip file raises RuntimeError if it is encrypted or compressed in another way.
_DAMAGED = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_split(path: Path) -> UInt8[np.ndarray, " N"]:
    """The split of each of N rows, as place in `PARTS`.

    Args:
        path: text with a name of `PARTS` a line, for each row in order; or ``.npz``, as
            `numpy.savez` writes it, with arrays of row numbers from 0, one of each name.

    Raises:
        UserError: it can't be read, a line is something else, or a row is in none or two splits.
    """
    try:
        splits = _of_numbers(path) if path.suffix == ".npz" else _of_names(path)
    except UserError:  # it names the file already
        raise
    except (*_DAMAGED, pl.exceptions.PolarsError) as error:
        raise UserError(f"cannot read the split {path}: {error}") from error
    if not (splits == 0).any():
        raise UserError(f"{path}: expected rows for training, got none")
    return splits


def _of_names(path: Path) -> UInt8[np.ndarray, " N"]:
    lines = pl.read_lines(path.read_bytes(), name="line")["line"].str.strip_chars()
    splits = lines.replace_strict(
        list(PARTS), range(len(PARTS)), default=None, return_dtype=pl.UInt8
    )
    if splits.null_count():
        row = splits.is_null().arg_max() or 0
        raise UserError(
            f"{path}, line {row + 1}: expected {_listed('or')}, for the row of the same number, "
            f"got {lines[row][:60]!r}"
        )
    return splits.to_numpy()


def _of_numbers(path: Path) -> UInt8[np.ndarray, " N"]:
    loaded = np.load(path)
    if isinstance(loaded, np.ndarray):
        raise UserError(
            f"{path}: expected the arrays {_listed('and')}, got a single one; write them by "
            f"numpy.savez"
        )
    with loaded as arrays:
        if sorted(arrays) != sorted(PARTS):
            raise UserError(
                f"{path}: expected the arrays {_listed('and')}, got {', '.join(arrays) or 'none'}"
            )
        rows = {name: np.asarray(arrays[name]) for name in PARTS}
    for name, numbers in rows.items():
        if numbers.ndim != 1 or (len(numbers) and numbers.dtype.kind not in "iu"):
            raise UserError(
                f"{path}, {name}: expected row numbers, got {numbers.dtype} of shape "
                f"{numbers.shape}"
            )
    # NumPy's empty arrays are of floats.
    rows = {name: numbers.astype(np.int64) for name, numbers in rows.items()}
    every = np.concatenate(list(rows.values()))
    count = len(every)
    outside = every[(every < 0) | (every >= count)]
    if len(outside) or len(np.unique(every)) < count:
        places, times = np.unique(every, return_counts=True)
        wrong = f"{outside[0]}" if len(outside) else f"{places[times > 1][0]} twice"
        raise UserError(
            f"{path}: expected each row number from 0 to {count - 1} in one of its {count} places, "
            f"got {wrong}; every row is in one split"
        )
    splits = np.zeros(count, np.uint8)
    for number, name in enumerate(PARTS):
        splits[rows[name]] = number
    return splits


def _listed(word: str) -> str:
    return f"{', '.join(PARTS[:-1])} {word} {PARTS[-1]}"
