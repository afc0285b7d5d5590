"""The dense part as ONNX predicts golden rows, with the tables beside it."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from converted import DCN, DLRM
from in_memory import InMemory

from dlrm_jax.conversion.onnx_model import write_onnx
from dlrm_jax.errors import UserError
from dlrm_jax.serving.export import export

THOROUGH = {
    "dcn": DCN,
    "cat": dataclasses.replace(DLRM, interaction="cat"),
    "self": dataclasses.replace(DLRM, self_interaction=True),
}


def predicted(directory: Path) -> np.ndarray:
    """What a stranger's program makes of the files alone."""
    dense, ids = (np.load(directory / f"golden/{name}.npy") for name in ("dense", "ids"))
    vectors = []
    for lookup in json.loads((directory / "lookups.json").read_text())["lookups"]:
        bags, table = ids[:, slice(*lookup["columns"])], np.load(directory / lookup["file"])
        assert lookup["pooling"] == "sum"
        vectors.append(np.where(bags[:, :, None] < 0, 0, table[np.maximum(bags, 0)]).sum(axis=1))
    session = onnxruntime.InferenceSession(directory / "model.onnx")
    inputs = {"dense": dense, "vectors": np.concatenate(vectors, axis=1).astype(np.float32)}
    return np.asarray(session.run(["probability"], inputs)[0])


def test_an_artifact_as_onnx(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert write_onnx(artifact, tmp_path / "onnx") < 1e-6
    expected = np.load(artifact / "golden" / "probabilities.npy")
    np.testing.assert_allclose(predicted(tmp_path / "onnx"), expected, rtol=0, atol=1e-6)
    monkeypatch.setattr("dlrm_jax.conversion.onnx_model.TOLERANCE", -1)
    with pytest.raises(UserError, match="predictions of onnxruntime differ by"):
        write_onnx(artifact, tmp_path / "again")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"onnx isn't installed; run pip install -e '.\[onnx\]'"):
        write_onnx(artifact, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.thorough
@pytest.mark.parametrize("kind", THOROUGH)
def test_other_interactions(kind: str, tmp_path: Path):
    model = InMemory.of(THOROUGH[kind], kept_negatives=0.25)  # with a shift
    export(model, tmp_path / "artifact", kind, "float32")
    assert write_onnx(tmp_path / "artifact", tmp_path / "onnx") < 1e-6
    expected = np.load(tmp_path / "artifact" / "golden" / "probabilities.npy")
    np.testing.assert_allclose(predicted(tmp_path / "onnx"), expected, rtol=0, atol=1e-6)
