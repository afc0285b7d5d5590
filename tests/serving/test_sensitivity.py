"""Artifacts verify in any order of summation, and no further than rounding goes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from large_sums import predict_in_another_order, write_large_sums, write_predictions

from dlrm_jax.artifact.artifact import Artifact
from dlrm_jax.errors import DamagedArtifactError
from dlrm_jax.inference.probabilities import sigmoid
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
    with pytest.raises(DamagedArtifactError, match=r"within .*e-0[56], they differ by 0\.000[23]"):
        verify(copy)


def test_moves_grow_with_the_share(exported: Path):
    artifact = Artifact.load(exported)
    rows = Golden.read(exported, artifact.manifest).examples
    small, large = (largest_move(artifact, rows, x, sigmoid) for x in (FLOAT32, 16 * FLOAT32))
    assert 8 * small < large < 32 * small
    assert largest_move(artifact, rows, 0.0, sigmoid) == 0
