"""A request as a client sends it: a row of the log without its label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from dlrm_jax.errors import UserError, cut, shown
from dlrm_jax.requests.columns import Columns
from dlrm_jax.requests.request_model import RequestModel
from dlrm_jax.requests.scorer import CheckedRequest
from dlrm_jax.serving.served_version import tensor_note

_EXPECTED = '{"request": {"column": [value, …] or value, …}}'


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    request: dict[str, Any]


def read_row(body: bytes) -> dict[str, Any]:
    """Reads a request of JSON.

    Args:
        body: body of the HTTP request.

    Raises:
        UserError: it isn't one.
    """
    try:
        return msgspec.json.decode(body, type=_Body).request
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"expected {_EXPECTED}: {cut(str(error), 300)}") from error


def row_of_tensors(columns: Columns, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The row of a request of the Open Inference Protocol.

    Args:
        columns: columns of the log.
        tensors: tensor [n] of each column; [1] of single values.

    Raises:
        UserError: a tensor has another shape.
    """
    single = single_columns(columns)
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if tensor.ndim != 1 or (name in single and len(tensor) != 1):
            raise UserError(
                f"input {cut(name)}: expected the shape {'[1]' if name in single else '[n]'}, got "
                f"{list(tensor.shape)}"
            )
        values = tensor.tolist() if _has_none(tensor) else tensor
        found[name] = values[0] if name in single else values
    return found


def tensors_of(columns: Columns, datatypes: Mapping[str, str]) -> list[dict[str, Any]]:
    """What the Open Inference Protocol says about the columns.

    Args:
        columns: columns of the log.
        datatypes: type of the values of each table.
    """
    single = single_columns(columns)
    tables = {**columns.history, **columns.candidates, **columns.context}
    kinds = {name: datatypes[table] for name, table in tables.items()}
    if columns.is_timed:
        kinds |= {columns.history_time: "INT64", columns.time: "INT64"}
    return [tensor_note(x, kind, 1 if x in single else -1) for x, kind in kinds.items()]


def checked_row(model: RequestModel, row: Mapping[str, Any]) -> CheckedRequest:
    """A request as the model takes it.

    Args:
        model: model.
        row: values of each column as the log has them: lists, and single values of the request.

    Raises:
        UserError: a column is missing or unknown, or has other values.
    """
    columns = model.scorer.columns
    names = [*columns.history, *columns.candidates, *columns.context]
    if columns.is_timed:
        names += [columns.history_time, columns.time]
    if missing := [name for name in names if name not in row]:
        raise UserError(
            f"request: there is no column {missing[0]!r}, expected {', '.join(names)}, got "
            f"{cut(', '.join(row), 1000) or 'none'}"
        )
    for name in row:
        if name not in names:
            raise UserError(
                f"request: expected the columns {', '.join(names)}, got {shown(name)}, too"
            )
    for name, value in row.items():
        if isinstance(value, list | np.ndarray) == (name in single_columns(columns)):
            wanted = "a single value" if name in single_columns(columns) else "a list"
            raise UserError(f"request: {name}: expected {wanted}, got {shown(value)}")

    def part(tables: Mapping[str, str]) -> dict[str, Any]:
        return {name: row[name] for name in tables}

    times = (row[columns.history_time], row[columns.time]) if columns.is_timed else (None, None)
    history, candidates = part(columns.history), part(columns.candidates)
    return model.checked(history, candidates, part(columns.context), *times)


def single_columns(columns: Columns) -> set[str]:
    """The columns with one value a request."""
    return {*columns.context} | ({columns.time} if columns.is_timed else set())


def _has_none(tensor: np.ndarray) -> bool:
    return tensor.dtype == object or np.ma.is_masked(tensor)
