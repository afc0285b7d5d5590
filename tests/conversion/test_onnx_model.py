"""The dense part as ONNX predicts golden rows, with the tables beside it."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converted import DCN, DLRM
from documents import ROOT, blocks
from in_memory import InMemory
from large_sums import predict_in_another_order, write_large_sums
from saved_run import examples

from dlrm_jax.artifact.files import note_files
from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.conversion.onnx_model import write_onnx
from dlrm_jax.data.arrays import Split
from dlrm_jax.errors import DamagedArtifactError, UserError
from dlrm_jax.serving.export import export
from dlrm_jax.serving.sensitivity import Tolerance

THOROUGH = {
    "dcn": DCN,
    "cat": dataclasses.replace(DLRM, interaction="cat"),
    "self": dataclasses.replace(DLRM, self_interaction=True),
}


def predicted(directory: Path) -> np.ndarray:
    """What the documentation's program makes of the files alone."""
    text = (ROOT / "docs" / "convert.md").read_text(encoding="utf-8")
    (code,) = (x for language, x in blocks(text) if language == "py" and "onnxruntime" in x)
    assert '"theirs-onnx"' in code
    found: dict[str, Any] = {}
    exec(code.replace('"theirs-onnx"', repr(str(directory))), found)
    return found["probability"]


def test_an_artifact_as_onnx(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert write_onnx(artifact, tmp_path / "onnx") < 1e-6
    expected = np.load(artifact / "golden" / "probabilities.npy")
    np.testing.assert_allclose(predicted(tmp_path / "onnx"), expected, rtol=0, atol=1e-6)
    monkeypatch.setattr("dlrm_jax.conversion.onnx_model.TOLERANCE", Tolerance(-1, 0))
    with pytest.raises(UserError, match="predictions of onnxruntime differ by"):
        write_onnx(artifact, tmp_path / "again")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"onnx isn't installed; run pip install -e '.\[onnx\]'"):
        write_onnx(artifact, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_bags_that_are_averaged_or_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = InMemory.of(dataclasses.replace(DLRM, pooling="mean"))
    export(model, tmp_path / "artifact", "mean", "float32")
    assert write_onnx(tmp_path / "artifact", tmp_path / "onnx") < 1e-6
    rows = examples(50, seed=5, config=DLRM).days[0]
    ids = np.array(rows.ids)
    ids[:10, 1:4] = -1
    ids[10:20, 2:4] = -1
    ids[10:20, 1] = 7
    expected = model.predictor().predict(Split((dataclasses.replace(rows, ids=ids),)))
    found = {"dense": rows.dense, "ids": ids, "probabilities": expected}
    for name, array in found.items():
        np.save(tmp_path / "onnx" / "golden" / f"{name}.npy", array)
    np.testing.assert_allclose(predicted(tmp_path / "onnx"), expected, rtol=0, atol=1e-6)
    assert capsys.readouterr().out.endswith("True\n")


def test_another_order_of_large_sums(tmp_path: Path):
    write_large_sums(tmp_path / "artifact")
    predict_in_another_order(tmp_path / "artifact")
    assert write_onnx(tmp_path / "artifact", tmp_path / "onnx") < 1e-4


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("dense", lambda x: x[0, 0], r"expected float32 of shape \[any, 1\], it has .* shape \[\]"),
        ("probabilities", lambda x: x.astype(str), "expected float64 of shape .*, it has <U"),
        ("ids", lambda x: x[:0], r"expected int32 of shape \[35, 3\], .* shape \[0, 3\]"),
    ],
)
def test_golden_rows_of_another_kind(artifact: Path, tmp_path: Path, name: str, change, message):
    copy = shutil.copytree(artifact, tmp_path / "copy")
    path = copy / "golden" / f"{name}.npy"
    np.save(path, change(np.load(path)))
    manifest = Manifest.read(copy)
    dataclasses.replace(manifest, files=note_files(copy)).write(copy)
    with pytest.raises(DamagedArtifactError, match=rf"golden/{name}\.npy: {message}"):
        write_onnx(copy, tmp_path / "onnx")


@pytest.mark.thorough
@pytest.mark.parametrize("kind", THOROUGH)
def test_other_interactions(kind: str, tmp_path: Path):
    model = InMemory.of(THOROUGH[kind], kept_negatives=0.25)  # with a shift
    export(model, tmp_path / "artifact", kind, "float32")
    assert write_onnx(tmp_path / "artifact", tmp_path / "onnx") < 1e-6
    expected = np.load(tmp_path / "artifact" / "golden" / "probabilities.npy")
    np.testing.assert_allclose(predicted(tmp_path / "onnx"), expected, rtol=0, atol=1e-6)
