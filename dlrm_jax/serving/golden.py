"""Golden rows: examples with the predictions that an artifact must give for them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from dlrm_jax.artifact.artifact import Artifact
from dlrm_jax.artifact.files import read_array
from dlrm_jax.artifact.id_rows import IdRows
from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.data.arrays import Dataset, Examples
from dlrm_jax.data.formats.npy import write_npy
from dlrm_jax.errors import DamagedArtifactError, UserError
from dlrm_jax.inference.artifact_scorer import ArtifactScorer, inputs_of
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.inference.probabilities import sigmoid
from dlrm_jax.inference.scored_rows import evenly_spaced_rows
from dlrm_jax.inference.scorer import Inputs
from dlrm_jax.serving.sensitivity import BFLOAT16, FLOAT32, Outputs, Tolerance

ROWS = 100
TOLERANCE = Tolerance(4e-6, FLOAT32)
"""Differences of a logit: another processor may sum in another order. A probability near one half
differs by a quarter of it, a rare one by less."""
SHORT_TOLERANCE = Tolerance(4e-2, BFLOAT16)
"""The same for a model that computes in bfloat16 or int8, which have 8 bits."""

_LEAST_SPREAD = 1e-6
"""Least p(1-p) that differences are divided by: of what is close to 1, float64 has few digits."""

DIRECTORY = "golden"
_DENSE, _IDS, _PREDICTIONS = FILES = tuple(
    f"{DIRECTORY}/{name}.npy" for name in ("dense", "ids", "probabilities")
)


class Compared(NamedTuple):
    """What golden rows have shown.

    Attributes:
        rows: number of rows.
        difference: largest difference of a probability; 0 if all are equal to the last bit.
    """

    rows: int
    difference: float


def choose(artifact: Artifact, data: Dataset | None) -> Examples:
    """Examples of the test split, evenly spaced; random ones where there is none.

    Every other random id of 64 bits is one that has a row, where any has.

    Args:
        artifact: artifact whose model predicts them.
        data: data of the run; None if they aren't there.
    """
    inputs = inputs_of(artifact.manifest)
    split = data.test if data is not None else None
    if split is not None and len(split):
        found = split.take(evenly_spaced_rows(len(split), ROWS))
        return Examples(found.dense, found.ids, np.zeros(len(found), np.float32))
    random = np.random.default_rng(0)
    dense = random.standard_normal((ROWS, inputs.dense_features)).astype(np.float32)
    limits = np.repeat(inputs.table_rows, inputs.bag_lengths)
    ids = random.integers(0, limits, (ROWS, len(limits))).astype(np.int32)
    if inputs.has_raw_ids:
        assert artifact.id_rows
        ids = _raw_ids(artifact.id_rows, random, inputs)
    return Examples(dense, ids, np.zeros(ROWS, np.float32))


def _raw_ids(
    id_rows: IdRows, random: np.random.Generator, inputs: Inputs
) -> Int64[np.ndarray, "N C"]:
    """Random ids of 64 bits; those of tables whose rows have keys are among them in even rows."""
    ends = np.cumsum(inputs.bag_lengths)
    ids = random.integers(0, 2**64, (ROWS, ends[-1]), np.uint64)
    ends = dict(zip(inputs.columns, ends.tolist(), strict=True))
    lengths = dict(zip(inputs.columns, inputs.bag_lengths, strict=True))
    for note in id_rows.note.maps:
        live = id_rows.indexes[note.name].live_keys
        for name in note.features if len(live) else ():
            own = ids[::2, ends[name] - lengths[name] : ends[name]]
            own[:] = live[own % np.uint64(len(live))]
    return ids.view(np.int64)


def write(directory: Path, predictor: Predictor, examples: Examples) -> None:
    """Predicts examples and writes them, with their predictions.

    Raises:
        UserError: a prediction isn't finite.
    """
    (directory / DIRECTORY).mkdir()
    write_npy(directory / _DENSE, examples.dense)
    write_npy(directory / _IDS, np.asarray(examples.ids))
    write_npy(directory / _PREDICTIONS, predictor.predict(examples))


class Golden(NamedTuple):
    """The golden rows of an artifact.

    Attributes:
        examples: examples, one or more.
        probabilities: their predictions, [N] or [N, H].
    """

    examples: Examples
    probabilities: Float64[np.ndarray, "N *_"]

    @classmethod
    def read(cls, directory: Path, manifest: Manifest) -> Golden:
        """Maps the golden rows of an artifact, whose files are there.

        Raises:
            DamagedArtifactError: there are none, or the arrays don't fit the model.
        """
        columns = sum(feature.max_ids for feature in manifest.features)
        labels = (manifest.outputs,) if manifest.outputs > 1 else ()
        dense = read_array(directory, _DENSE, np.float32, (None, manifest.dense_features))
        if not len(dense):
            raise DamagedArtifactError(str(directory), _DENSE, "expected golden rows, it has none")
        is_raw = inputs_of(manifest).has_raw_ids
        ids = read_array(directory, _IDS, np.int64 if is_raw else np.int32, (len(dense), columns))
        found = read_array(directory, _PREDICTIONS, np.float64, (len(dense), *labels))
        return cls(Examples(dense, ids, np.zeros(len(dense), np.float32)), found)

    def difference(self, found: Float64[np.ndarray, "N *_"]) -> float:
        """The largest difference of a logit: that of the probability p, divided by p(1-p)."""
        return float(np.max(np.abs(found - self.probabilities) / self._spread))

    def allowed(self, difference: float, artifact: Artifact, tolerance: Tolerance) -> float:
        """The largest difference of a logit that an artifact may have, see `Tolerance`."""
        shift = artifact.manifest.shift

        def result(outputs: Outputs) -> Outputs:
            return sigmoid(outputs, shift) / self._spread

        return tolerance.of(difference, artifact, self.examples, result)

    @property
    def _spread(self) -> Float64[np.ndarray, "N *_"]:
        return np.maximum(self.probabilities * (1 - self.probabilities), _LEAST_SPREAD)


def compare(directory: Path, predictor: Predictor, tolerance: Tolerance = TOLERANCE) -> Compared:
    """Predicts the golden rows of an artifact again.

    Args:
        directory: directory of the artifact.
        predictor: model of the artifact.
        tolerance: largest difference of a logit.

    Raises:
        DamagedArtifactError: the predictions are others.
    """
    assert isinstance(predictor.scorer, ArtifactScorer)
    artifact = predictor.scorer.artifact
    rows = Golden.read(directory, artifact.manifest)
    try:
        found = predictor.predict(rows.examples)
    except UserError as error:
        raise DamagedArtifactError(str(directory), _PREDICTIONS, str(error)) from error
    difference = rows.difference(found)
    allowed = rows.allowed(difference, artifact, tolerance)
    if not difference <= allowed:  # NaN isn't, either
        raise DamagedArtifactError(
            str(directory),
            _PREDICTIONS,
            f"expected its logits to within {allowed:.2g}, they differ by {difference:.2g}",
        )
    return Compared(len(found), float(np.max(np.abs(found - rows.probabilities))))
