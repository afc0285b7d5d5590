"""Messages of the Open Inference Protocol, version 2: JSON, and tensors in binary behind it.

https://github.com/open-inference/open-inference-protocol has the protocol, and
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
the binary extension.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from dlrm_jax.errors import UserError, cut, shown

EXTENSIONS = ("binary_tensor_data", "model_repository")

HEADER_LENGTH = "inference-header-content-length"
"""The HTTP header with the bytes of the JSON, if binary tensors follow it."""

_DTYPES = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32,
    "UINT64": np.uint64, "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
    "FP16": np.float16, "FP32": np.float32, "FP64": np.float64,
}  # fmt: skip
_BYTES = "BYTES"
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str = ""
    outputs: list[_Output] | None = None
    parameters: dict[str, Any] = {}


class InferRequest(NamedTuple):
    """A request.

    Attributes:
        id: identifier that the client gave; empty if none.
        tensors: inputs by name; those of text are `str` or None within an object array. Where JSON
            has null, floats are NaN, integers and booleans masked.
        outputs: names of the outputs that are asked for, and whether each is wanted in binary;
            None for all.
        binary: whether outputs that aren't named are wanted in binary.
    """

    id: str
    tensors: dict[str, np.ndarray]
    outputs: dict[str, bool] | None
    binary: bool


def read_request(
    body: bytes, header_length: str | None, check_rows: Callable[[int], None]
) -> InferRequest:
    """Reads a request.

    Args:
        body: body of the HTTP request.
        header_length: value of `HEADER_LENGTH`; None without the header.
        check_rows: function that is called with the rows of each tensor before it is read; it
            raises for too many, which would take time and memory.

    Raises:
        UserError: it isn't one; the message names the input.
    """
    length = len(body)
    if header_length is not None:
        digits = header_length.isascii() and header_length.isdecimal() and len(header_length) < 20
        if not digits or int(header_length) > len(body):
            raise UserError(
                f"{HEADER_LENGTH}: expected the bytes of the JSON, at most {len(body)}, got "
                f"{header_length[:20]!r}"
            )
        length = int(header_length)
    try:
        found = msgspec.json.decode(body[:length], type=_Request)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(
            f"request: expected JSON of the Open Inference Protocol: {cut(str(error), 300)}"
        ) from error
    rest = memoryview(body)[length:]
    tensors: dict[str, np.ndarray] = {}
    for given in found.inputs:
        if given.name in tensors:
            raise UserError(f"inputs: {shown(given.name)} is there twice")
        _check_kind(given)
        check_rows(given.shape[0])
        size = given.parameters.get("binary_data_size")
        if size is not None:
            if type(size) is not int or not 0 <= size <= len(rest):
                raise UserError(
                    f"input {cut(given.name)}: binary_data_size: expected at most {len(rest)} "
                    f"bytes, which are left, got {shown(size)}"
                )
            tensors[given.name] = _from_bytes(given, rest[:size])
            rest = rest[size:]
        elif given.data is not None:
            tensors[given.name] = _from_json(given, given.data)
        else:
            raise UserError(f"input {cut(given.name)}: expected data, or binary_data_size")
    if len(rest):
        raise UserError(f"request: {len(rest)} bytes are left behind the inputs")
    binary = _flag(found.parameters, "binary_data_output", False)
    outputs = None
    if found.outputs:
        outputs = {x.name: _flag(x.parameters, "binary_data", binary) for x in found.outputs}
    return InferRequest(found.id, tensors, outputs, binary)


def write_response(
    model: str, version: str, request: InferRequest, tensors: Mapping[str, np.ndarray]
) -> tuple[bytes, dict[str, str]]:
    """The body and the HTTP headers of a response.

    Args:
        model: name of the model.
        version: name of its version.
        request: request.
        tensors: all outputs by name.

    Raises:
        UserError: the request asks for an output that there isn't.
    """
    wanted = request.outputs
    if wanted is None:
        wanted = dict.fromkeys(tensors, request.binary)
    binary: list[bytes] = []
    outputs = []
    for name, is_binary in wanted.items():
        if name not in tensors:
            raise UserError(
                f"outputs: there is no {shown(name)}, the model has {', '.join(tensors)}"
            )
        array = tensors[name]
        output: dict[str, Any] = {
            "name": name, "datatype": _NAMES[array.dtype], "shape": list(array.shape)
        }  # fmt: skip
        if is_binary:
            binary.append(np.ascontiguousarray(array).tobytes())
            output["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            output["data"] = array.ravel().tolist()
        outputs.append(output)
    content = {"model_name": model, "model_version": version, "outputs": outputs}
    if request.id:
        content["id"] = request.id
    head = msgspec.json.encode(content)
    if not binary:
        return head, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(head))}
    return b"".join([head, *binary]), headers


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise UserError(f"parameters: {name}: expected true or false")
    return value


def datatype(dtype: np.dtype) -> str:
    """The protocol's name of a type of numbers."""
    return _NAMES[dtype]


def _from_json(given: _Input, data: Sequence[Any]) -> np.ndarray:
    count = math.prod(given.shape)
    flat = _flat(given, data)
    if len(flat) != count:
        raise UserError(
            f"input {cut(given.name)}: expected {count} values for the shape {given.shape}, got "
            f"{len(flat)}"
        )
    if given.datatype == _BYTES:
        _check_types(given, flat, (str,), "text")
        return np.array(flat, object).reshape(given.shape)
    dtype = np.dtype(_DTYPES[given.datatype])
    kinds = {"b": (bool,), "f": (int, float)}.get(dtype.kind, (int,))
    _check_types(given, flat, kinds, given.datatype)
    try:
        if dtype.kind == "f" or None not in flat:
            with np.errstate(over="raise"):  # otherwise it is infinite, and a warning
                return np.array(flat, dtype).reshape(given.shape)
        mask = [x is None for x in flat]
        values = np.array([0 if x is None else x for x in flat], dtype)
        return np.ma.array(values, mask=mask).reshape(given.shape)
    except (OverflowError, FloatingPointError) as error:
        raise _unexpected(given, flat, _first_too_large(flat, dtype), given.datatype) from error


def _first_too_large(values: Sequence[Any], dtype: np.dtype) -> int:
    """The place of the first number that a type hasn't. Floats are rounded, also to the largest."""
    if dtype.kind != "f":
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        return next(i for i, x in enumerate(values) if x is not None and not low <= x <= high)
    largest = sys.float_info.max  # an integer may be larger, and then no array takes it
    doubles = [x if x is None or abs(x) <= largest else math.inf for x in values]
    with np.errstate(over="ignore"):
        return int(np.isinf(np.array(doubles, dtype)).argmax())


def _check_types(
    given: _Input, values: Sequence[Any], kinds: Sequence[type], expected: str
) -> None:
    for place, value in enumerate(values):
        if value is not None and type(value) not in kinds:
            raise _unexpected(given, values, place, expected)


def _unexpected(given: _Input, values: Sequence[Any], place: int, expected: str) -> UserError:
    row = place * given.shape[0] // len(values)
    return UserError(
        f"input {cut(given.name)}, row {row} (from 0): expected {expected} or null, got "
        f"{shown(values[place])}"
    )


def _flat(given: _Input, data: Sequence[Any]) -> list[Any]:
    """The values of lists that are nested like the shape, or flat."""
    if len(given.shape) == 1 or not (data and isinstance(data[0], list)):
        return list(data)
    rows, columns = given.shape
    if len(data) != rows or any(not isinstance(x, list) or len(x) != columns for x in data):
        raise UserError(
            f"input {cut(given.name)}: expected {rows} lists of {columns} values for the shape "
            f"{given.shape}"
        )
    return [each for x in data for each in x]


def _from_bytes(given: _Input, data: memoryview) -> np.ndarray:
    count = math.prod(given.shape)
    if given.datatype == _BYTES:
        return np.array(_texts(given.name, data, count), object).reshape(given.shape)
    dtype = np.dtype(_DTYPES[given.datatype]).newbyteorder("<")
    if len(data) != count * dtype.itemsize:
        raise UserError(
            f"input {cut(given.name)}: expected {count * dtype.itemsize} bytes for the shape "
            f"{given.shape} of {given.datatype}, got {len(data)}"
        )
    return np.frombuffer(data, dtype).astype(_DTYPES[given.datatype]).reshape(given.shape)


def _texts(name: str, data: memoryview, count: int) -> list[str]:
    """Texts that each follow their length as 4 bytes."""
    found = []
    while len(data) and len(found) <= count:
        if len(data) < 4 or len(data) - 4 < (size := struct.unpack_from("<I", data)[0]):
            raise UserError(f"input {cut(name)}: text {len(found)} (from 0) is cut short")
        try:
            found.append(str(data[4 : 4 + size], "utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"input {cut(name)}: text {len(found)} (from 0): {error}") from error
        data = data[4 + size :]
    if len(found) != count:
        more = "more" if len(data) else len(found)
        raise UserError(f"input {cut(name)}: expected {count} texts, got {more}")
    return found


def _check_kind(given: _Input) -> None:
    if given.datatype not in (*_DTYPES, _BYTES):
        raise UserError(
            f"input {cut(given.name)}: expected a datatype of {', '.join((*_DTYPES, _BYTES))}, got "
            f"{shown(given.datatype)}"
        )
    if not 1 <= len(given.shape) <= 2 or not all(0 <= x < 2**31 for x in given.shape):
        raise UserError(f"input {cut(given.name)}: expected a shape such as [1] or [1, 8]")
