"""The arrays of a model here and in PyTorch: transposed, and with columns in another order.

A top MLP reads the dense vector and then products of pairs of vectors. The reference and this
program go through the lower triangle row by row: (1,0), (2,0), (2,1), …; TorchRec through the upper
one: (0,1), (0,2), …, (1,2), …. So the first layer's columns differ, and so they do where tables are
in another order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int

from dlrm_jax.conversion.architecture import Architecture
from dlrm_jax.conversion.tensor_names import Format


@dataclasses.dataclass(frozen=True)
class Correspondence:
    """How the layers of a model lie in PyTorch.

    Attributes:
        names: names in PyTorch by those here.
        columns: places there of the numbers that the first layer above the tables reads here.
    """

    names: dict[str, str]
    columns: Int[np.ndarray, " W"]

    @classmethod
    def of(
        cls, architecture: Architecture, form: Format, order: Sequence[int] | None = None
    ) -> Correspondence:
        """The correspondence of a model.

        Args:
            architecture: the model.
            form: PyTorch's model.
            order: places there of the tables here; None if they are in the same order.
        """
        places = np.arange(architecture.tables) if order is None else np.asarray(order)
        names = architecture.counts.there(form)
        return cls(names, _columns(architecture, form, places))

    @property
    def moves(self) -> bool:
        """Whether columns have another order."""
        return not np.array_equal(self.columns, np.arange(len(self.columns)))

    def here(self, name: str, there: Float32[np.ndarray, "*_"]) -> Float32[np.ndarray, "*_"]:
        """The array of this name here, of PyTorch's tensor."""
        array = there.T if there.ndim == 2 else there
        return array if (axis := _axis(name)) is None else array.take(self.columns, axis)

    def there(self, name: str, here: Float32[np.ndarray, "*_"]) -> Float32[np.ndarray, "*_"]:
        """PyTorch's tensor, of the array of this name here."""
        if (axis := _axis(name)) is not None:
            here = here.take(np.argsort(self.columns), axis)
        return np.ascontiguousarray(here.T if here.ndim == 2 else here)


def _axis(name: str) -> int | None:
    """The axis of an array that has the numbers which the first layer reads."""
    if name == "top.layers.0.kernel":
        return 0
    if name.startswith("cross."):
        return 1 if name.endswith("factors.1") else 0
    return None


def _columns(
    architecture: Architecture, form: Format, order: Int[np.ndarray, " F"]
) -> Int[np.ndarray, " W"]:
    first = np.arange(architecture.bottom_mlp[-1])
    if architecture.interaction != "dot":
        dim = architecture.embedding_dim
        blocks = len(first) + order[:, None] * dim + np.arange(dim)
        return np.concatenate([first, blocks.reshape(-1)])
    vectors, alike = architecture.tables + 1, architecture.self_interaction
    place_of = np.concatenate([[0], order + 1])  # the dense vector is the first of both
    i, j = np.tril_indices(vectors, 0 if alike else -1)
    wanted = np.stack([place_of[i], place_of[j]])
    pairs = np.stack([i, j] if form == "dlrm" else np.triu_indices(vectors, 1))
    number = np.full((vectors, vectors), -1)
    number[pairs[0], pairs[1]] = number[pairs[1], pairs[0]] = np.arange(pairs.shape[1])
    return np.concatenate([first, len(first) + number[wanted[0], wanted[1]]])
