"""Splits ratings into training, validation and test."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from dlrm_jax.data.given_split import read_split
from dlrm_jax.data.preprocessing.split_rule import PARTS
from dlrm_jax.errors import UserError

SPLITS = ("random", "time", "leave_one_out")
"""The ways to split ratings; the other one is ``rows=FILE``, see `given_rows`."""

GIVEN = "rows="
"""The beginning of the name of a split that a file gives."""


class Rows(NamedTuple):
    """The rows of each split, ascending."""

    train: Int64[np.ndarray, " n"]
    validation: Int64[np.ndarray, " m"]
    test: Int64[np.ndarray, " t"]


def check_split(how: str) -> None:
    """Checks the name of a split, before data are read.

    Raises:
        UserError: there is no such split, or no file that gives it.
    """
    if how.startswith(GIVEN):
        if not Path(how.removeprefix(GIVEN)).is_file():
            raise UserError(f"split: expected rows=FILE with a file that is there, got {how!r}")
    elif how not in SPLITS:
        raise UserError(f"split: expected one of {', '.join(SPLITS)}, rows=FILE, got {how!r}")


def given_rows(path: Path, order: Int64[np.ndarray, " N"]) -> Rows:
    """Reads the split of a file.

    Args:
        path: file, see `read_split`; it counts ratings as their file does.
        order: row in that file of each rating, in the order of time.

    Raises:
        UserError: it can't be read, or is of another number of ratings.
    """
    splits = read_split(path)
    if len(splits) != len(order):
        raise UserError(
            f"{path}: it has the split of {len(splits):,} ratings, but there are {len(order):,}; "
            f"give one each"
        )
    return Rows(*(np.flatnonzero(splits[order] == number) for number in range(len(PARTS))))


def split_rows(users: Int64[np.ndarray, " N"], how: str, seed: int) -> Rows:
    """Splits ratings.

    Args:
        users: user of each rating, [N], in the order of time.
        how: name of the split, one of `SPLITS`. ``random`` draws a tenth, rounded down, for
            validation and another for test; ``time`` takes the last two tenths; ``leave_one_out``
            takes the last rating but one and the last of every user with three or more.
        seed: seed of the random split.

    Raises:
        UserError: there is no such split, or there are too few ratings for it.
    """
    check_split(how)
    count = len(users)
    if how in ("random", "time"):
        tenth = count // 10
        if not tenth:
            raise UserError(f"a {how} split needs at least 10 ratings, got {count}")
        order = np.arange(count)
        if how == "random":
            np.random.default_rng([seed, 1]).shuffle(order)
        return Rows(*map(np.sort, np.split(order, [count - 2 * tenth, count - tenth])))
    by_user = np.argsort(users, kind="stable")
    sizes = np.bincount(users)
    ends = np.cumsum(sizes)[sizes > 2]
    if not len(ends):
        raise UserError("leaving one out needs a user with at least 3 ratings, there is none")
    validation, test = by_user[ends - 2], by_user[ends - 1]
    train = np.delete(by_user, np.concatenate([ends - 2, ends - 1]))
    return Rows(*map(np.sort, (train, validation, test)))
