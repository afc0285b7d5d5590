"""Files of torch.save, read without running code: tensors, numbers and containers alone."""

from __future__ import annotations

import importlib
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlrm_jax.errors import UserError

_INSIDE = ("state_dict", "model_state_dict", "model")
"""Keys under which programs save a state dict beside other things."""

_DEEPEST = 3
"""Levels at which a state dict may be; a dict may be in itself."""

_METADATA, _NOTE = "_metadata", "dlrm_jax"
"""Attribute of a state dict with a dict for each module, which `load_state_dict` gives to it; and
the name of the note there, which no module has."""

_SHARDED = ("sharded_tensor", "DTensor")


def torch_library(path: Path) -> Any:
    """PyTorch.

    Raises:
        UserError: it isn't installed.
    """
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path}: torch isn't installed; run pip install -e '.[torch]' in the checkout, or "
            f"give a .safetensors file"
        ) from error


def read_state_dict(path: Path) -> tuple[dict[str, Any], str | None]:
    """The tensors of a file by name, and its note; tensors of a zip file are mapped.

    Raises:
        UserError: the file is damaged, holds other objects than tensors and numbers, which would
            run code, or has no state dict.
    """
    torch = torch_library(path)
    try:
        with torch.serialization.safe_globals(_numbers()):
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:  # a damaged file fails in any way
        if type(error).__name__ == "UnpicklingError":
            raise UserError(f"{path}: {_reason(str(error))}") from error
        raise UserError(
            f"{path} can't be read as a file of torch.save: {_line(error)}; is it complete?"
        ) from error
    found = _find(torch, content)
    if found is None:
        kind = f"keys {', '.join(map(repr, list(content)[:5]))}" if _is_dict(content) else None
        raise UserError(
            f"{path}: expected a state dict, which is tensors by name, alone or under "
            f"{', '.join(map(repr, _INSIDE))}, got {kind or type(content).__name__}; write one "
            f"with torch.save(model.state_dict(), …)"
        )
    for name, tensor in found.items():
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise UserError(f"{path}: {_spread(f'{name}, {type(tensor).__name__}')}")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise UserError(
                f"{path}: tensor {name} isn't dense numbers ({tensor.layout}, {tensor.dtype}, "
                f"{tensor.device}); convert it first"
            )
    return found, _note_of(found)


def _find(torch: Any, content: Any, depth: int = 0) -> dict[str, Any] | None:
    if not _is_dict(content) or depth > _DEEPEST:
        return None
    tensors = {
        name: x for name, x in content.items() if isinstance(name, str) and torch.is_tensor(x)
    }
    if tensors and len(tensors) == len(content):
        return content
    for key in _INSIDE:
        if (found := _find(torch, content.get(key), depth + 1)) is not None:
            return found
    return None


def _note_of(state: dict[str, Any]) -> str | None:
    """The note of `write_torch`; None in other files."""
    found: Any = getattr(state, _METADATA, None)
    for _ in range(2):
        found = found.get(_NOTE) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


def _is_dict(content: Any) -> bool:
    return isinstance(content, dict)


def _numbers() -> list[Any]:
    """NumPy's scalars, which the reference saves as the accuracy of a model."""
    scalar = np.float64(0).__reduce__()[0]
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    types = {type(np.dtype(code)) for code in "?bhilqBHILQefd"}
    return [*((scalar, name) for name in names), np.dtype, *types]


def _reason(message: str) -> str:
    if sharded := [word for word in _SHARDED if word in message]:
        return _spread(sharded[0])
    named = re.search(r"GLOBAL ([\w.]+)", message)
    name = named[1] if named else None
    if name:
        return (
            f"it has {name}, which is no tensor and no number: reading it would run code; write "
            f"tensors alone, with torch.save(model.state_dict(), …)"
        )
    error = re.search(r"WeightsUnpickler error: (.*)", message)
    return f"it can't be read as tensors: {error[1] if error else message.splitlines()[0]}"


def _spread(which: str) -> str:
    return (
        f"it has tensors that are spread over processes ({which}); gather them first, and save "
        f"what is whole: torch.distributed.checkpoint.state_dict.get_model_state_dict with "
        f"StateDictOptions(full_state_dict=True, cpu_offload=True)"
    )


def _line(error: Exception) -> str:
    text = f"{type(error).__name__} {error}".strip()
    return text.splitlines()[0].split(". ")[0][:200]


def write_torch(
    path: Path, tensors: Mapping[str, np.ndarray], note: str, beside: Mapping[str, Any]
) -> None:
    """Writes a state dict with torch.save, and a note where modules have metadata of their own.

    It is under ``"state_dict"`` if there are entries beside it.
    """
    torch = torch_library(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they aren't copied, and may be read-only; torch reads
        state = OrderedDict((name, torch.from_numpy(array)) for name, array in tensors.items())
    setattr(state, _METADATA, OrderedDict({_NOTE: {_NOTE: note}}))
    torch.save({**beside, "state_dict": state} if beside else state, path)
