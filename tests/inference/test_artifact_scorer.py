"""A predictor of an artifact: raw rows as for a run, without class or config."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dlrm_jax.data.arrays import Examples
from dlrm_jax.data.directory import load_directory
from dlrm_jax.errors import UserError
from dlrm_jax.inference.artifact_scorer import ArtifactScorer, load_artifact
from dlrm_jax.inference.predictor import Predictor

PREVIOUS = Path(__file__).parents[1] / "previous"
RUN = PREVIOUS / "run_of_format_3"
RAW = PREVIOUS / "raw.csv"


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("a model is built, or its config read")


@pytest.fixture
def model(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> Predictor:
    for name in ("flax.nnx.merge", "dlrm_jax.training.model.model_class"):
        monkeypatch.setattr(name, forbidden)
    monkeypatch.setattr("dlrm_jax.config.Config.__post_init__", forbidden)
    return Predictor.load(artifact, batch_size=256)


def test_raw_rows(model: Predictor):
    expected = np.load(PREVIOUS / "expected.npz")["probabilities"]
    found = model.predict(RAW)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    frame = pl.read_csv(RAW, schema_overrides={"age": pl.Float64}).drop("click")
    np.testing.assert_array_equal(model.predict(frame), found)
    np.testing.assert_allclose(model.predict(frame[:2].to_dicts()), found[:2], rtol=1e-6)
    (part,) = model.of_files([RAW], keys=["word"])
    assert part.keys["word"].to_list() == pl.read_csv(RAW)["word"].to_list()
    assert set(part.labels.tolist()) == {0, 1}


def test_what_it_says_of_itself(model: Predictor):
    assert repr(model) == "Predictor(artifact small of 3 tables in float32)"
    assert model.batch_sizes == (1, 2, 4, 8, 16, 32, 64, 128, 256)
    assert model.labels == ("label",)
    assert model.encoder.columns == ["age", "page", "city", "word"]
    for name in ("config", "learner", "state", "compiled"):
        with pytest.raises(UserError, match=r"expected a trained model, .*, got the artifact"):
            getattr(model, name)


def test_examples(model: Predictor):
    test = load_directory(PREVIOUS / "data").test
    np.testing.assert_array_equal(
        np.concatenate([*model.probabilities(test)]), model.predict(test.take(np.arange(35)))
    )
    assert model.predict(test[:0]).shape == (0,)
    scorer = model.scorer
    assert isinstance(scorer, ArtifactScorer)
    none = test[:0].days[0]
    assert scorer.artifact.logits(none.dense, np.asarray(none.ids)).shape == (0,)
    dense, ids = np.zeros((1, 1), np.float32), np.array([[0, 6, 0]], np.int32)
    with pytest.raises(UserError, match="feature C2: expected an id from 0 to 5"):
        model.predict(Examples(dense, ids, np.zeros(1, np.float32)))
    with pytest.raises(UserError, match="with 1 dense features, got examples with 2"):
        model.predict(Examples(np.zeros((1, 2), np.float32), ids, np.zeros(1, np.float32)))
    dense[0] = np.nan
    with pytest.raises(UserError, match=r"row 0 \(from 0\) isn't finite"):
        model.predict(Examples(dense, ids * 0, np.zeros(1, np.float32)))


def test_what_an_artifact_does_not_take(artifact: Path, tmp_path: Path):
    with pytest.raises(UserError, match="mesh: an artifact predicts on one device, expected 1x1"):
        Predictor.load(artifact, "2x4")
    with pytest.raises(UserError, match="model: an artifact needs no class, got 'a:B'"):
        Predictor.load(artifact, model="a:B")
    for size in (2.5, True, 0, -1, "8"):
        with pytest.raises(UserError, match=f"size: expected an integer from 1 on, got {size!r}"):
            inspect.unwrap(load_artifact)(artifact, "1x1", size, None, None)
    with pytest.raises(UserError, match=r"metadata\.json"):
        Predictor.load(artifact, preprocessing=tmp_path)
    Predictor.load(artifact, preprocessing=RUN / "preprocessing")
