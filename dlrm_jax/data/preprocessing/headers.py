"""The columns of log files, checked before their rows are read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from dlrm_jax.data.formats import lines, parquet
from dlrm_jax.data.formats.compression import DamagedError, open_bytes
from dlrm_jax.data.formats.csv_text import Records
from dlrm_jax.data.preprocessing import logs
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.row_split import RowSplit
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.data.preprocessing.sources import is_parquet
from dlrm_jax.errors import UserError
from dlrm_jax.feature_names import check_no_pattern


def check_headers(
    paths: Sequence[Path], options: Options, keys: Sequence[str] = ()
) -> dict[str, Any]:
    """Checks the columns of files before their rows are read.

    Args:
        paths: the files.
        options: options of the data.
        keys: columns to pass through.

    Returns:
        The type of each key, which is one for all files.

    Raises:
        UserError: a column is missing or has the wrong type, or a key has several types.
    """
    check_no_pattern("keys", keys)
    types: dict[str, tuple[Path, Any]] = {}
    for path in paths:
        found = _header(path, options)
        if found is None:
            if keys:
                raise UserError(
                    f"keys: expected Parquet or CSV, whose columns have names, got {path} in "
                    f"Criteo's form, which has no column {keys[0]!r}"
                )
            continue
        logs.check_columns(path, options.schema, found, without_label=True)
        for key in keys:
            if key not in found:
                raise UserError(
                    f"keys: {path} has no column {key!r}; its columns are {', '.join(found)}"
                )
            kind = pl.String() if found[key] in (pl.Categorical, pl.Enum) else found[key]
            before, first = types.setdefault(key, (path, kind))
            common = _common(first, kind)
            if common is None:
                raise UserError(
                    f"keys: column {key} is {first} in {before}, but {kind} in {path}; give it "
                    f"one type"
                )
            types[key] = before, common
    return {key: kind for key, (_, kind) in types.items()}


def check_training(paths: Sequence[Path], options: Options, row_split: RowSplit | None) -> None:
    """Checks the columns of files for training, all before the rows of the first are read.

    Args:
        paths: the files.
        options: options of the data.
        row_split: rule that gives each row its split, if one does.

    Raises:
        UserError: a column is missing or has the wrong type.
    """
    for path in paths:
        found = _header(path, options)
        if found is not None:
            logs.check_columns(path, options.schema, found)
            if row_split:
                row_split.check_columns(path, found)


def optional_columns(paths: Sequence[Path], options: Options, names: Sequence[str]) -> list[str]:
    """Those of some columns that all files have."""
    headers = [_header(path, options) or {} for path in paths]
    return [name for name in names if all(name in header for header in headers)]


def _header(path: Path, options: Options) -> dict[str, Any] | None:
    """Names and types of the columns; None in Criteo's forms."""
    if options.schema.layout != "named":
        return None
    try:
        if is_parquet(path):
            with path.open("rb") as file, parquet.reading(str(path)):
                return dict(pl.scan_parquet(file, glob=False).collect_schema())
        with open_bytes(path) as content:
            text = lines.whole_lines(content.read, path, lines.CHUNK_BYTES)
            return _csv_header(text, path, options.schema)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except DamagedError as error:
        raise UserError(
            f"{path}: the compressed file is cut short or damaged ({error}); was the download "
            f"complete?"
        ) from error


def _csv_header(text: Iterable[bytes], path: Path, schema: Schema) -> dict[str, Any]:
    columns = Records(text, path, "stop", schema.dialect).columns
    if not schema.header and set(columns).isdisjoint(schema.columns):
        found = repr(schema.separator.join(columns)[:80])
        raise UserError(
            f"{path} has no column of the schema: expected the names of columns in line 1, "
            f"separated by {schema.separator!r}, such as {schema.categorical[0]!r}, got "
            f"{found}. If the separator is another one, or the file has no such line, give the "
            f"schema separator and header"
        )
    return dict.fromkeys(columns, pl.String())


def _common(first: Any, second: Any) -> Any:
    """The type of both columns one below the other; None if there is none."""
    integers = first.is_integer() and second.is_integer()
    if not integers and first != second and pl.Null not in (first, second):
        return None
    parts = [pl.DataFrame(schema={"x": kind}) for kind in (first, second)]
    return pl.concat(parts, how="vertical_relaxed").schema["x"]
