"""A cell of the experiment: a model of one size, trained once; stored, and not trained again."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dlrm_jax.errors import UserError
from dlrm_jax.files import read_json, write_json
from dlrm_jax.training.record import to_json
from experiments.scaling.sizes import Size

_VERSION = 1
"""It enters a cell's name; raise it with every change of data or training."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """What decides a result.

    Attributes:
        model: name of the model.
        size: size of it.
        learning_rate: peak of the learning rate.
        seed: seed of initial values and order. The data are the same for all.
        samples: training examples of a ranking model, users of a model of sequences.
    """

    model: str
    size: Size
    learning_rate: float
    seed: int
    samples: int


@dataclasses.dataclass(frozen=True)
class Measured:
    """The result of a cell.

    Attributes:
        parameters: numbers in tables and layers.
        flops: floating-point operations of matrix products per sample of a training step, forward
            and backward. A sample is an example, or an item of a history.
        best: best normalized entropy of the test split, that of what has made the labels.
        validation: normalized entropy of the validation split above the best one.
        test: the same of the test split.
        seconds: time of the cell.
    """

    parameters: int
    flops: float
    best: float
    validation: float
    test: float
    seconds: float


def measured(cell: Cell, run: Callable[[Cell], Measured], directory: Path) -> Measured:
    """The result of a cell, which is read from its file if there is one.

    Args:
        cell: the cell.
        run: function that trains it.
        directory: directory of the files.

    Raises:
        UserError: a file is damaged or another cell's, or a result isn't finite.
    """
    content: dict[str, Any] = {"version": _VERSION, **dataclasses.asdict(cell)}
    key = hashlib.blake2b(to_json(content).encode(), digest_size=8).hexdigest()
    path = directory / f"{cell.model}-{key}.json"
    if path.exists():
        return _read(path, content)
    directory.mkdir(parents=True, exist_ok=True)
    found = run(cell)
    if not _is_finite(found):
        raise UserError(
            f"{cell.model}: expected finite results of {cell}, got {found}; the training diverges"
        )
    write_json(path, {"cell": content, "measured": dataclasses.asdict(found)})
    return found


def _read(path: Path, content: Mapping[str, Any]) -> Measured:
    """The result in a file, which names the cell that it is of."""
    try:
        stored = read_json(path)
        found = Measured(**stored["measured"])
        if stored["cell"] != content:
            raise ValueError(f"it is of {stored['cell']}")
        if not _is_finite(found):
            raise ValueError("not all are finite numbers")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"cell {path}: expected the result of a training, got something else: {error}; delete "
            f"it to train again"
        ) from error
    return found


def _is_finite(found: Measured) -> bool:
    values = dataclasses.astuple(found)
    return all(isinstance(x, int | float) and math.isfinite(x) for x in values)
