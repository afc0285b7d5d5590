"""Names of a model's tensors: here, in the DLRM reference, and in TorchRec.

Here names are those of warm starts: ``bottom.layers.0.kernel``. A kernel is [in, out], PyTorch's
weight [out, in].
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Literal

from dlrm_jax.errors import UserError

Format = Literal["dlrm", "torchrec"]
"""The DLRM reference's `DLRM_Net`, or TorchRec's `DLRM` and `DLRM_DCN`."""

_PREFIXES: Mapping[Format, tuple[str, ...]] = {
    "dlrm": ("emb_l.", "bot_l.", "top_l."),
    "torchrec": ("sparse_arch.", "dense_arch.", "over_arch.", "inter_arch."),
}

_LAYERS: Mapping[Format | Literal["here"], Mapping[str, str]] = {
    "here": {
        "bottom": r"bottom\.layers\.\d+\.kernel",
        "top": r"top\.layers\.\d+\.kernel",
        "cross": r"cross\.\d+\.bias",
    },
    "dlrm": {"bottom": r"bot_l\.\d+\.weight", "top": r"top_l\.\d+\.weight", "cross": r"(?!)"},
    "torchrec": {
        "bottom": r"dense_arch\.model\._mlp\.\d+\._linear\.weight",
        "top": r"over_arch\.model\.(0\._mlp\.\d+\._linear|1)\.weight",
        "cross": r"inter_arch\.crossnet\.bias\.\d+",
    },
}

_TABLE: Mapping[Format, tuple[str, str]] = {
    "dlrm": ("emb_l.", ".weight"),
    "torchrec": ("sparse_arch.embedding_bag_collection.embedding_bags.", ".weight"),
}

WITHOUT_NUMBERS = frozenset(("inter_arch.triu_indices",))
"""Tensors of earlier versions of TorchRec that follow from the number of tables."""


@dataclasses.dataclass(frozen=True)
class Layers:
    """How many layers a model has of each kind; ``cross`` are those of DCN-v2."""

    bottom: int
    top: int
    cross: int

    @classmethod
    def of(cls, names: Iterable[str], form: Format | Literal["here"]) -> Layers:
        """The numbers of layers that names speak of."""
        names = list(names)
        patterns = _LAYERS[form].items()
        return cls(**{x: sum(bool(re.fullmatch(y, name)) for name in names) for x, y in patterns})

    def here(self) -> list[str]:
        """The names here of all arrays of the layers."""
        mlps = [("bottom", self.bottom), ("top", self.top)]
        names = [
            f"{mlp}.layers.{i}.{array}"
            for mlp, count in mlps
            for i in range(count)
            for array in ("kernel", "bias")
        ]
        parts = ("factors.0", "factors.1", "bias")
        return names + [f"cross.{i}.{part}" for i in range(self.cross) for part in parts]

    def there(self, form: Format) -> dict[str, str]:
        """The names in PyTorch by those here.

        Raises:
            UserError: the format has no such layers.
        """
        if form == "dlrm" and self.cross:
            raise UserError(
                "format: the DLRM reference has no cross layers; TorchRec has: --format=torchrec"
            )
        if form == "torchrec" and self.top < 2:
            raise UserError(
                f"top_mlp: TorchRec's top has at least 2 layers, got {self.top}; --format=dlrm"
            )
        return {name: self._there(name, form) for name in self.here()}

    def _there(self, name: str, form: Format) -> str:
        part, *_, last = name.split(".")
        array = {"kernel": "weight"}.get(last, last)
        if part == "cross":
            number, kind = name.removeprefix("cross.").split(".", 1)
            kernels = {"factors.0": "V_kernels", "factors.1": "W_kernels", "bias": "bias"}
            return f"inter_arch.crossnet.{kernels[kind]}.{number}"
        i = int(name.split(".")[2])
        if form == "dlrm":  # between the layers are those of the ReLUs
            return f"{'bot_l' if part == 'bottom' else 'top_l'}.{2 * i}.{array}"
        if part == "bottom":
            return f"dense_arch.model._mlp.{i}._linear.{array}"
        if i + 1 == self.top:
            return f"over_arch.model.1.{array}"
        return f"over_arch.model.0._mlp.{i}._linear.{array}"


def form_of(names: Iterable[str]) -> Format | None:
    """The format whose names these are; None if they are of another model."""
    names = list(names)
    for form, prefixes in _PREFIXES.items():
        if any(name.startswith(prefixes) for name in names):
            return form
    return None


def wrapper_of(names: Iterable[str]) -> str:
    """What stands before each name where a model was wrapped, such as ``model.``; often empty."""
    every = tuple(prefix for prefixes in _PREFIXES.values() for prefix in prefixes)
    pattern = re.compile(rf"((?:\w+\.)*?)(?:{'|'.join(map(re.escape, every))})")
    found = {match[1] for name in names if (match := pattern.match(name))}
    return found.pop() if len(found) == 1 else ""


def table_tensor(table: str, form: Format) -> str:
    """The name of a table's tensor; tables of the reference have numbers."""
    before, after = _TABLE[form]
    return f"{before}{table}{after}"


def tables_in(names: Iterable[str], form: Format) -> list[str]:
    """The tables whose tensors are among names, in their order; by number in the reference."""
    before, after = _TABLE[form]
    found = [
        name[len(before) : -len(after)]
        for name in names
        if name.startswith(before) and name.endswith(after)
    ]
    if form == "torchrec":
        return found
    return sorted((x for x in found if x.isdecimal()), key=int)
