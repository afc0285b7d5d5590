"""The types that the columns of a log of requests may have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from dlrm_jax.data.formats import parquet
from dlrm_jax.errors import UserError
from dlrm_jax.requests.columns import Columns
from dlrm_jax.requests.log_types import is_nameable


def check_types(path: Path, columns: Columns) -> Mapping[str, Any]:
    """The types of a file's columns that are read.

    Args:
        path: the file.
        columns: columns to read.

    Raises:
        UserError: see `rows_of`.
    """
    with parquet.reading(str(path)):
        found = pl.read_parquet_schema(path)
    lists = [*columns.history, *([columns.history_time] if columns.history_time else [])]
    single = [*columns.context, *([columns.time] if columns.time else [])]
    shown = [*columns.candidates, columns.label]
    for name in (*lists, *single, *shown):
        if name not in found:
            raise UserError(f"{path} has no column {name!r}; it has {', '.join(found)}")
    # Candidates are lists, or all of them single values.
    (lists if isinstance(found[shown[0]], pl.List) else single).extend(shown)
    for names, wanted in ((lists, "lists"), (single, "single values")):
        for name in names:
            if isinstance(found[name], pl.List) != (wanted == "lists"):
                raise UserError(f"{path}, column {name}: expected {wanted}, got {found[name]}")
    for name in (columns.history_time, columns.time):
        if name:
            check_times(path, name, _inner(found[name]))
    for names in columns.tables.values():
        for name in names:
            if _kind(_inner(found[name])) is None:
                raise UserError(
                    f"{path}, column {name}: expected numbers, text, booleans or dates, which "
                    f"requests can name, got {found[name]}; convert it, such as to text"
                )
    return {name: found[name] for name in (*lists, *single)}


def check_shared(
    paths: Sequence[Path], types: Sequence[Mapping[str, Any]], columns: Columns
) -> None:
    """Checks that columns that read one table have values of one kind, in all files.

    Args:
        paths: files.
        types: types of the columns of each.
        columns: columns to read.

    Raises:
        UserError: they don't.
    """
    for table, names in columns.tables.items():
        first, *others = [(path, x) for path in paths for x in names]
        of = {
            (path, x): _inner(kinds[x])
            for path, kinds in zip(paths, types, strict=True)
            for x in names
        }
        for path, name in others:
            if _kind(of[path, name]) != _kind(of[first]):
                raise UserError(
                    f"table {table}: expected columns of one type, got {of[first]} of {first[1]} "
                    f"in {first[0]} and {of[path, name]} of {name} in {path}; use one type"
                )


def _kind(kind: Any) -> str | None:
    """What values of a type are compared as; None of values that can't have a row."""
    if not is_nameable(kind):
        return None
    return "integer" if kind.is_integer() else "float" if kind.is_float() else str(kind)


def check_times(path: Path, name: str, kind: Any) -> None:
    """Checks the type of a column of times.

    Args:
        path: its file, for the message.
        name: its name, for the message.
        kind: its type, that of an element for lists.

    Raises:
        UserError: it has no times.
    """
    if kind not in (pl.Date, pl.Datetime) and not (kind.is_integer() or kind.is_float()):
        raise UserError(f"{path}, column {name}: expected dates, or seconds as numbers, got {kind}")


def seconds(column: pl.Expr, kind: Any) -> pl.Expr:
    """Times as whole seconds.

    Args:
        column: column of times.
        kind: its type, that of an element for lists.
    """
    if kind.is_temporal():
        return column.cast(pl.Datetime("us")).dt.epoch("s")
    return column.cast(pl.Int64, strict=False)


def _inner(kind: Any) -> Any:
    return kind.inner if isinstance(kind, pl.List) else kind
