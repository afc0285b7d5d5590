"""An artifact of sums that are much larger than its logits, and the same sums in another order."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from in_memory import InMemory

from dlrm_jax.artifact.artifact import Artifact
from dlrm_jax.artifact.files import note_files
from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.config import Config
from dlrm_jax.inference.probabilities import sigmoid
from dlrm_jax.serving.export import export
from dlrm_jax.serving.golden import Golden

_ORDERS = 8


def write_large_sums(directory: Path) -> None:
    """Exports it: logits are up to 280, some are near 0, and the layers' numbers are random."""
    config = Config(
        table_rows=(9, 30, 30),
        bag_lengths=(1, 3, 2),
        embedding_dim=33,
        dense_features=47,
        bottom_mlp=(100, 65, 33),
        top_mlp=(129, 31, 1),
    )
    export(InMemory.of(config), directory, "large", "float32")


def predict_in_another_order(directory: Path) -> np.ndarray:
    """Gives an artifact the golden predictions of another order of summation.

    It is that of several which differs most from the artifact's.

    Returns:
        The predictions.
    """
    artifact = dataclasses.replace(Artifact.load(directory), native=None)
    rows = Golden.read(directory, artifact.manifest)
    dense, ids = rows.examples.dense, np.asarray(rows.examples.ids)
    found = [sigmoid(_reordered(artifact, seed).logits(dense, ids)) for seed in range(_ORDERS)]
    differences = [np.abs(each - rows.probabilities).max() for each in found]
    assert max(differences) > 1e-6, "nothing that a fixed tolerance wouldn't allow"
    farthest = found[int(np.argmax(differences))]
    write_predictions(directory, farthest)
    return farthest


def write_predictions(directory: Path, probabilities: np.ndarray) -> None:
    """Gives an artifact other golden predictions, as if they were written so."""
    np.save(directory / "golden" / "probabilities.npy", probabilities)
    manifest = Manifest.read(directory)
    dataclasses.replace(manifest, files=note_files(directory)).write(directory)


def _reordered(artifact: Artifact, seed: int) -> Artifact:
    """The same model, the units of whose hidden layers stand in another order."""
    layers, random = dict(artifact.layers), np.random.default_rng(seed)
    for mlp, number in (("bottom", 0), ("bottom", 1), ("top", 0), ("top", 1)):
        own, after = f"{mlp}.layers.{number}", f"{mlp}.layers.{number + 1}"
        order = random.permutation(len(layers[f"{own}.bias"]))
        layers[f"{own}.kernel"] = layers[f"{own}.kernel"][:, order]
        layers[f"{own}.bias"] = layers[f"{own}.bias"][order]
        layers[f"{after}.kernel"] = layers[f"{after}.kernel"][order]
    return dataclasses.replace(artifact, layers=layers)
