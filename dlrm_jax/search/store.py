"""The SQLite file of a search: its place, its errors, and the settings as Optuna has them."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import optuna
import sqlalchemy.exc

from dlrm_jax.errors import UserError
from dlrm_jax.search.space import Dimension

STORE = "study.sqlite3"
"""Name of the file."""

_WAIT_SECONDS = 300  # for other programs that read the file


def check_directory(directory: Path) -> None:
    """Checks that a directory is new, empty, or that of a search.

    Raises:
        UserError: it isn't.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"output: expected a directory, got the file {directory}")
    if directory.is_dir() and not (directory / STORE).is_file():
        others = sorted(each.name for each in directory.iterdir() if each.name != ".lock")
        if others:
            raise UserError(
                f"output: {directory} has files of something else, such as {others[0]}; give a new "
                f"directory, or that of a search"
            )


def open_storage(directory: Path) -> optuna.storages.RDBStorage:
    """Optuna's storage in the file of a directory; the file is made if it isn't there.

    Args:
        directory: directory of the search, whose lock the caller has.

    Raises:
        UserError: it is that of an incompatible version of Optuna.
    """
    path = directory / STORE
    url = sqlalchemy.URL.create("sqlite", database=str(path.absolute()))
    try:
        return optuna.storages.RDBStorage(
            url.render_as_string(), {"connect_args": {"timeout": _WAIT_SECONDS}}
        )
    except RuntimeError as error:
        raise UserError(f"output: {path} is of another version of Optuna: {error}") from error


@contextlib.contextmanager
def explained(directory: Path) -> Iterator[None]:
    """Context that turns errors of the file of a directory into a message.

    Raises:
        UserError: the file can't be read or written.
    """
    try:
        yield
    except (
        sqlalchemy.exc.SQLAlchemyError,
        sqlite3.Error,
        optuna.exceptions.StorageInternalError,
    ) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", None) or cause).splitlines()[0]
        raise UserError(
            f"{directory / STORE} can't be read or written: {reason}; check that it is the file of "
            f"a search and that the disk is writable and large enough"
        ) from error


def distribution(each: Dimension) -> optuna.distributions.BaseDistribution:
    """What Optuna calls a dimension."""
    if each.choices:
        return optuna.distributions.CategoricalDistribution(each.choices)
    if isinstance(each.low, int):
        return optuna.distributions.IntDistribution(each.low, int(each.high), log=each.log)
    return optuna.distributions.FloatDistribution(each.low, each.high, log=each.log)
