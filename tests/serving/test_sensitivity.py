"""Artifacts verify in any order of summation, and no further than rounding goes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from in_memory import InMemory
from large_sums import predict_in_another_order, write_large_sums, write_predictions

from dlrm_jax.artifact.artifact import Artifact
from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.config import Config
from dlrm_jax.errors import DamagedArtifactError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.inference.probabilities import sigmoid
from dlrm_jax.serving.export import export
from dlrm_jax.serving.golden import Golden
from dlrm_jax.serving.sensitivity import FLOAT32, largest_move
from dlrm_jax.serving.verify import verify


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported") / "artifact"
    write_large_sums(directory)
    return directory


def test_another_order_of_summation_is_no_damage(exported: Path, tmp_path: Path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    found = predict_in_another_order(copy)
    verify(copy)
    near_half = np.argmin(np.abs(found - 0.5))
    write_predictions(copy, found + 3e-4 * (np.arange(len(found)) == near_half))
    with pytest.raises(DamagedArtifactError, match=r"logits to within .*, they differ by 0\.001"):
        verify(copy)


def test_damage_is_found_where_labels_are_rare(tmp_path: Path):
    """All rows get the same probability, which is near to each of theirs."""
    config = Config(
        table_rows=(9, 30), embedding_dim=4, dense_features=3, bottom_mlp=(8, 4), top_mlp=(8, 1)
    )
    model = InMemory.of(config, kept_negatives=0.001)
    export(model, tmp_path / "x", "x", "float32", layers="bfloat16")
    verify(tmp_path / "x")
    expected = np.load(tmp_path / "x" / "golden" / "probabilities.npy")
    path = tmp_path / "x" / "layers" / "top.layers.1.kernel.npy"
    np.save(path, np.zeros_like(np.load(path)))
    write_predictions(tmp_path / "x", expected)  # and the files as they are now
    found = Predictor.load(tmp_path / "x").predict(
        Golden.read(tmp_path / "x", Manifest.read(tmp_path / "x")).examples
    )
    assert np.ptp(found) == 0
    assert 0 < np.abs(found - expected).max() < 0.01
    with pytest.raises(DamagedArtifactError, match=r"logits to within 0\.04, they differ by"):
        verify(tmp_path / "x")


def test_moves_grow_with_the_share(exported: Path):
    artifact = Artifact.load(exported)
    rows = Golden.read(exported, artifact.manifest).examples
    small, large = (largest_move(artifact, rows, x, sigmoid) for x in (FLOAT32, 16 * FLOAT32))
    assert 8 * small < large < 32 * small
    assert largest_move(artifact, rows, 0.0, sigmoid) == 0
