"""An artifact predicts what the trained model does, without its class, config or compiler."""

from __future__ import annotations

import dataclasses
import errno
import sys
from pathlib import Path

import numpy as np
import pytest
from in_memory import InMemory
from saved_run import examples

from dlrm_jax.artifact.dense_program import BATCH_SIZES
from dlrm_jax.artifact.row_formats import RowFormat
from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Examples
from dlrm_jax.data.directory import load_directory
from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.models.zoo import MODELS
from dlrm_jax.serving.export import export
from dlrm_jax.serving.table_variants import TableVariants
from dlrm_jax.serving.trained_model import TrainedModel

BASE = Config(
    table_rows=(9, 30, 30),
    bag_lengths=(1, 3, 2),
    embedding_dim=4,
    dense_features=3,
    bottom_mlp=(4,),
    top_mlp=(5, 1),
)
LABELS = ("clicked", "bought")
CONFIGS = {
    "dlrm": {
        "normalization": "batch", "dropout": 0.5, "pooling": "mean", "table_dtype": "bfloat16",
        "numeric_embedding": "linear", "compression": "quotient_remainder", "compress_above": 10,
        "collisions": 4,
    },
    "din": {
        "model_options": ("target=C1",), "table_rows": (30, 30, 7), "shared_tables": ("C2=C1",),
    },
    "hstu": {"model_options": ("target=C1", "latest=last"), "shared_tables": ("C3=C2",)},
    "stca": {"model_options": ("target=C1",), "compute_dtype": "bfloat16"},
    "ple": {"labels": LABELS, "compression": "mixed_dimensions", "compress_above": 10},
    "deepfm": {"pooling": "learned", "table_dtype": "bfloat16"},
    "logistic_regression": {},
    "fm": {"compression": "quotient_remainder", "compress_above": 10, "composition": "concat"},
    "wide_deep": {"normalization": "layer", "compute_dtype": "bfloat16"},
    "xdeepfm": {"pooling": "mean"},
    "dcn": {"dense_features": 0},
    "dcn_v2": {"numeric_embedding": "linear"},
    "autoint": {"shared_tables": ("C3=C2",)},
    "ncf": {"table_rows": (9, 30), "bag_lengths": (1,), "dense_features": 0},
    "shared_bottom": {"labels": LABELS},
    "mmoe": {"labels": LABELS, "normalization": "batch"},
    "esmm": {"labels": LABELS, "pooling": "learned"},
    "autoint_plus": {"pooling": "mean", "model_options": ("attention_dropout=0.5",)},
    "afn": {"pooling": "mean"},
    "afn_plus": {"normalization": "batch"},
    "masknet": {"model_options": ("structure=parallel",), "compute_dtype": "bfloat16"},
    "finalmlp": {"numeric_embedding": "linear", "model_options": ("context_1=numeric.*",)},
    "finalnet": {"normalization": "batch", "dropout": 0.5, "top_mlp": (6, 1)},
    "gdcn": {"dense_features": 0},
    "fcn": {"dropout": 0.5},
    "wukong": {"compression": "quotient_remainder", "compress_above": 10},
    "rankmixer": {"model_options": ("layers=3",)},
    "ssr": {"model_options": ("view_width=8",)},
}  # fmt: skip
QUICK = ("dlrm", "din", "esmm")


def config_of(model: str) -> Config:
    return dataclasses.replace(BASE, model=model, **CONFIGS[model])


def test_every_model_is_here():
    assert CONFIGS.keys() == MODELS.keys()


@pytest.mark.parametrize(
    "model",
    [x if x in QUICK else pytest.param(x, marks=pytest.mark.thorough) for x in CONFIGS],
)
def test_it_predicts_what_the_trained_model_does(model: str, tmp_path: Path):
    """To float32's rounding: the programs are compiled apart, and bfloat16 has 8 bits."""
    config = config_of(model)
    trained = InMemory.of(config, kept_negatives=0.25)
    done = export(trained, tmp_path / "artifact", model, "float32")
    predictor = Predictor.load(tmp_path / "artifact", batch_size=256)
    split = examples(50, seed=1, config=config)
    expected, found = trained.predictor().predict(split), predictor.predict(split)
    assert np.ptp(expected, axis=0).min() > 0.01, "nothing to compare"
    tolerance = 0.02 if config.compute_dtype == "bfloat16" else 2e-6
    np.testing.assert_allclose(found, expected, rtol=tolerance)
    assert predictor.labels == (config.labels or ("label",))
    assert predictor.shift == np.log(0.25)
    sizes = tuple(program.batch_size for program in done.manifest.programs)
    if model in ("hstu", "stca"):  # their blocks of tokens need the number of rows
        assert sizes == BATCH_SIZES
    else:
        assert sizes == (None,), "one program for any number of rows"


@pytest.mark.thorough
@pytest.mark.parametrize("row_format", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("model", ["dlrm", "din", "ple", "autoint"])
def test_stored_rows_predict_what_their_numbers_do(
    model: str, row_format: RowFormat, tmp_path: Path
):
    """One row, a whole batch, more than one; bags that are empty, or begin with absent ids."""
    config = dataclasses.replace(config_of(model), table_dtype="float32")
    trained = InMemory.of(config)
    export(trained, tmp_path / "artifact", model, row_format)
    predictor = Predictor.load(tmp_path / "artifact")
    found = examples(10_000, seed=1, config=config).take(np.arange(10_000))
    ids = np.array(found.ids)
    ids[:3000:2] = -1
    ids[1:3000:2, ::2] = -1
    rows = Examples(found.dense, ids, found.labels)
    expected = trained.rounded(row_format).predictor(8192).predict(rows)
    assert np.ptp(expected, axis=0).min() > 0.01, "nothing to compare"
    for count in (1, 8192, 10_000):
        np.testing.assert_allclose(predictor.predict(rows[:count]), expected[:count], rtol=2e-6)


RUN = Path(__file__).parents[1] / "previous" / "run_of_format_3"
DATA = RUN.parent / "data"


@pytest.fixture(scope="module")
def small() -> TrainedModel:
    return TrainedModel.read(RUN)


def sizes_of(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (directory / "tables").iterdir()}


def test_metrics_before_and_after_quantization(small: TrainedModel, tmp_path: Path):
    data = load_directory(DATA)
    done = export(small, tmp_path / "int8", "small", "int8", data)
    found = done.manifest.metrics
    assert found.keys() == {"validation", "test"}
    for of_split in found.values():
        trained, exported = of_split["trained"]["log_loss"], of_split["exported"]["log_loss"]
        assert trained is not None
        assert exported is not None
        assert 0 < abs(exported - trained) < 1e-3
    assert sizes_of(tmp_path / "int8") == {"C1.rows": 42 * 8, "C2.rows": 6 * 8, "C3.rows": 14 * 8}
    assert sorted(x.name for x in (tmp_path / "int8").iterdir()) == [
        "golden", "layers", "manifest.json", "preprocessing", "programs", "tables",
    ]  # fmt: skip
    again = export(small, tmp_path / "kept", "small", "int8", data, max_auc_loss=-1.0)
    assert again.choice is not None
    assert again.choice.quantized == ()
    assert {x.row_format for x in again.manifest.tables} == {"float32"}
    assert sizes_of(tmp_path / "kept") == {"C1.rows": 42 * 16, "C2.rows": 6 * 16, "C3.rows": 224}
    of_test = again.manifest.metrics["test"]
    assert of_test["exported"] == of_test["trained"] == found["test"]["trained"]


def test_rows_that_integers_would_make_longer_stay(tmp_path: Path):
    """Those of a single weight: as int8 they are a bias of 11 bits and 5 bytes."""
    model = InMemory.of(config_of("deepfm"))
    written = TableVariants.write(model, tmp_path, "int4", both=True)
    kept = {note.dim: note.row_format for note in written.exported}
    assert kept == {1: "bfloat16", 4: "int4"}
    assert written.names == ("C1", "C2", "C3")
    sizes = {x.name: x.stat().st_size for x in (tmp_path / "tables").iterdir()}
    assert sizes["C2.rows"] == 30 * 6
    assert sizes["C2.weight.rows"] == 30 * 2


def test_a_loss_needs_validation_examples(small: TrainedModel, tmp_path: Path):
    with pytest.raises(UserError, match="max_auc_loss: expected data with a validation split"):
        export(small, tmp_path / "x", "small", "int8", None, 0.1)
    assert [*tmp_path.iterdir()] == []


def test_nothing_is_left_of_what_cannot_be_written(
    small: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there exists; remove it, or give another name"):
        export(small, tmp_path / "there", "small", "float32")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for place in ("table_variants.write_rows", "export.write_layer", "golden.write"):
        with monkeypatch.context() as patched:
            patched.setattr(f"dlrm_jax.serving.{place}", full)
            with pytest.raises(UserError, match=r"cannot write .*No space left.*nothing is left"):
                export(small, tmp_path / "new", "small", "float32")
    assert [x.name for x in tmp_path.iterdir()] == ["there"]


def test_a_class_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its code needs the batch size as a number; the artifact doesn't need the class."""
    (tmp_path / "only_here.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    config = dataclasses.replace(BASE, model="only_here:Own", table_rows=(9,), bag_lengths=(2,))
    trained = InMemory.of(config)
    done = export(trained, tmp_path / "artifact", "own", "bfloat16")
    assert [x.batch_size for x in done.manifest.programs] == [1, 16, 256, 8192]
    split = examples(20, config=config)
    expected = trained.predictor().predict(split)
    monkeypatch.delitem(sys.modules, "only_here")
    (tmp_path / "only_here.py").unlink()
    predictor = Predictor.load(tmp_path / "artifact", batch_size=100)
    np.testing.assert_allclose(predictor.predict(split), expected, rtol=0.01)
    np.testing.assert_array_equal(predictor.predict(split[:16]), predictor.predict(split)[:16])


OWN = """
from flax import nnx
from dlrm_jax.models.fields import Model

class Own(Model):
    def __init__(self, dense_features, fields, *, rngs):
        self.last = nnx.Linear(dense_features, 1, rngs=rngs)

    def __call__(self, dense, vectors):
        return self.last(dense).reshape(len(dense)) + sum(x.sum(1) for x in vectors.values())
"""
