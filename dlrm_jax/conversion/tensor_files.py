"""Files of named tensors: safetensors, and those that torch.save writes."""

from __future__ import annotations

import abc
import importlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 so that NumPy knows bfloat16 by its name
import numpy as np
from jaxtyping import Float32

from dlrm_jax.conversion.safetensors_file import write_safetensors
from dlrm_jax.conversion.torch_files import read_state_dict, write_torch
from dlrm_jax.errors import UserError

_FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_TABLES, _NOTE = "tables", "dlrm_jax"
"""Keys in the metadata of a safetensors file: the order of tables, since the file sorts its
tensors, and the note of the model."""


class TensorFile(abc.ABC):
    """Tensors by name.

    Attributes:
        path: the file.
        shapes: shapes by name.
        dtypes: types of the numbers by name, such as ``"float16"``.
        is_ordered: whether the tensors are in the order in which the model has them.
        order: names of the tables in the order of the model; None if the file doesn't note it.
        note: text of a `ModelNote`, if this program wrote the file.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    is_ordered: bool
    order: Sequence[str] | None
    note: str | None

    def read(self, name: str) -> Float32[np.ndarray, "*_"]:
        """The numbers of a tensor as float32, which rounds those of float64 alone.

        Raises:
            UserError: they are no floating-point numbers, or not finite.
        """
        if self.dtypes[name] not in _FLOATS.values():
            raise UserError(
                f"{self.path}: tensor {name} has {self.dtypes[name]}, expected one of "
                f"{', '.join(_FLOATS.values())}; convert what isn't quantized"
            )
        with np.errstate(over="ignore"):  # the sum below finds what is too large
            array = self._read(name).astype(np.float32, copy=False)
        finite = np.isfinite(array)
        if not finite.all():
            place = [int(x) for x in np.argwhere(~finite)[0]]
            raise UserError(
                f"{self.path}: tensor {name} has {array[tuple(place)]} at {place}; a model with "
                f"such numbers predicts nothing"
            )
        return array

    @abc.abstractmethod
    def _read(self, name: str) -> np.ndarray:
        """The numbers of a tensor, of their own type."""


class _Safetensors(TensorFile):
    def __init__(self, path: Path):
        safetensors = _library("safetensors", path)
        self.path = path
        try:
            self._file = safetensors.safe_open(path, framework="numpy")
        except (OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{path} can't be read as safetensors: {error}") from error
        slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
        self.shapes = {name: tuple(x.get_shape()) for name, x in slices.items()}
        types = {name: str(x.get_dtype()) for name, x in slices.items()}
        self.dtypes = {name: _FLOATS.get(x, x) for name, x in types.items()}
        self.is_ordered = False  # they are sorted
        metadata = self._file.metadata() or {}
        self.order, self.note = _noted_order(path, metadata), metadata.get(_NOTE)

    def _read(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name)


def _noted_order(path: Path, metadata: Mapping[str, str]) -> list[str] | None:
    if _TABLES not in metadata:
        return None
    try:
        names = json.loads(metadata[_TABLES])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its metadata have no list of {_TABLES}: {error}") from error
    if not isinstance(names, list) or not all(isinstance(x, str) for x in names):
        raise UserError(f"{path}: its metadata have {names!r} for {_TABLES}, expected a list")
    return names


class _Torch(TensorFile):
    def __init__(self, path: Path):
        self.path = path
        self._tensors, self.note = read_state_dict(path)
        self.shapes = {name: tuple(x.shape) for name, x in self._tensors.items()}
        self.dtypes = {
            name: str(x.dtype).removeprefix("torch.") for name, x in self._tensors.items()
        }
        self.is_ordered, self.order = True, None

    def _read(self, name: str) -> np.ndarray:
        tensor: Any = self._tensors[name].detach().resolve_neg()
        if self.dtypes[name] == "bfloat16":  # which NumPy has not
            tensor = tensor.float()
        return tensor.numpy()


def open_tensors(path: Path) -> TensorFile:
    """Opens a file; its first bytes say what it is.

    Raises:
        UserError: it can't be read, or is neither.
    """
    if path.is_dir():
        raise UserError(f"expected a file of tensors, got the directory {path}")
    try:
        with path.open("rb") as file:
            first = file.read(9)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if first[8:] == b"{":
        return _Safetensors(path)
    if first[:2] == b"PK" or re.match(rb"\x80[\x02-\x05]", first):
        return _Torch(path)
    raise UserError(
        f"{path}: expected a file of torch.save or of safetensors, got one that begins with "
        f"{first!r}"
    )


def check_suffix(path: Path) -> None:
    """Checks that a name says what to write, and that the library for it is there."""
    if path.suffix in (".pt", ".pth"):
        _library("torch", path)
    elif path.suffix != ".safetensors":
        raise UserError(
            f"output: expected a name that ends in .pt, .pth or .safetensors, got {path}"
        )


def write_tensors(
    path: Path,
    shapes: Mapping[str, Sequence[int]],
    tensors: Iterable[tuple[str, Float32[np.ndarray, "*_"]]],
    tables: Sequence[str],
    note: str,
    beside: Mapping[str, Any],
) -> None:
    """Writes a file of the kind that its name says.

    A tensor at a time is in memory for safetensors, all of them once for torch.save.

    Args:
        path: file to make.
        shapes: shape of each tensor by name, in the order of the model.
        tensors: all of them with their names, in any order.
        tables: names of the tables, in their order.
        note: text of the note of the model.
        beside: entries beside the tensors in a file of torch.save; none for tensors alone.
    """
    if path.suffix == ".safetensors":
        metadata = {_TABLES: json.dumps([*tables]), _NOTE: note}
        write_safetensors(path, shapes, tensors, metadata)
    else:
        found = dict(tensors)
        write_torch(path, {name: found[name] for name in shapes}, note, beside)


def _library(name: str, path: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path}: {name} isn't installed; run pip install -e '.[torch]' in the checkout"
        ) from error
