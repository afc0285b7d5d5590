"""Golden rows: examples with the predictions that an artifact must give for them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from dlrm_jax.data.arrays import Dataset, Examples, Split
from dlrm_jax.data.formats.npy import map_npy
from dlrm_jax.errors import DamagedArtifactError, UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.inference.scored_rows import evenly_spaced_rows
from dlrm_jax.inference.scorer import Inputs

ROWS = 100
TOLERANCE = 1e-6
"""Largest difference of a probability: another processor may sum in another order."""
SHORT_TOLERANCE = 1e-2
"""The same for a model that computes in bfloat16, which has 8 bits."""

_DIRECTORY = "golden"
_DENSE, _IDS, _PREDICTIONS = FILES = tuple(
    f"{_DIRECTORY}/{name}.npy" for name in ("dense", "ids", "probabilities")
)


class Compared(NamedTuple):
    """What golden rows have shown.

    Attributes:
        rows: number of rows.
        difference: largest difference of a probability; 0 if all are equal to the last bit.
    """

    rows: int
    difference: float


def choose(inputs: Inputs, data: Dataset | None) -> Examples:
    """Examples of the test split, evenly spaced; random ones where there is none.

    Args:
        inputs: features of the model.
        data: data of the run; None if they aren't there.
    """
    split = data.test if data is not None else None
    if split is not None and len(split):
        found = split.take(evenly_spaced_rows(len(split), ROWS))
        return Examples(found.dense, found.ids, np.zeros(len(found), np.float32))
    random = np.random.default_rng(0)
    dense = random.standard_normal((ROWS, inputs.dense_features)).astype(np.float32)
    limits = np.repeat(inputs.table_rows, inputs.bag_lengths)
    ids = random.integers(0, limits, (ROWS, len(limits))).astype(np.int32)
    return Examples(dense, ids, np.zeros(ROWS, np.float32))


def write(directory: Path, predictor: Predictor, examples: Examples) -> None:
    """Predicts examples and writes them, with their predictions.

    Raises:
        UserError: a prediction isn't finite.
    """
    (directory / _DIRECTORY).mkdir()
    np.save(directory / _DENSE, examples.dense)
    np.save(directory / _IDS, np.asarray(examples.ids))
    np.save(directory / _PREDICTIONS, predictor.predict(examples))


def compare(directory: Path, predictor: Predictor, tolerance: float = TOLERANCE) -> Compared:
    """Predicts the golden rows of an artifact again.

    Args:
        directory: directory of the artifact.
        predictor: model of the artifact.
        tolerance: largest difference of a probability.

    Raises:
        DamagedArtifactError: the predictions are others.
    """
    try:
        dense, ids, expected = (map_npy(directory / name) for name in FILES)
        examples = Examples(dense, ids, np.zeros(len(dense), np.float32))
        found = predictor.predict(Split((examples,)))
        difference = _largest_difference(found, expected)
    except (UserError, ValueError) as error:
        raise DamagedArtifactError(str(directory), _PREDICTIONS, str(error)) from error
    if not difference <= tolerance:  # NaN isn't, either
        raise DamagedArtifactError(
            str(directory),
            _PREDICTIONS,
            f"expected its predictions to within {tolerance:g}, they differ by {difference:.2g}",
        )
    return Compared(len(found), difference)


def _largest_difference(
    found: Float64[np.ndarray, "N *_"], expected: Float64[np.ndarray, "N *_"]
) -> float:
    if found.shape != expected.shape:
        raise ValueError(f"expected shape {expected.shape}, got {found.shape}")
    return float(np.max(np.abs(found - expected), initial=0.0))
