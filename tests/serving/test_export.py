"""An artifact predicts what the trained model does, without its class, config or compiler."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from in_memory import InMemory
from saved_run import examples

from dlrm_jax.config import Config
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.models.zoo import MODELS
from dlrm_jax.serving.export import export

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
        "normalization": "batch", "dropout": 0.5, "pooling": "mean",
        "compression": "quotient_remainder", "compress_above": 10, "collisions": 4,
    },
    "din": {
        "model_options": ("target=C1",), "table_rows": (30, 30, 7), "shared_tables": ("C2=C1",),
    },
    "ple": {"labels": LABELS},
    "deepfm": {"numeric_embedding": "linear", "table_dtype": "bfloat16", "pooling": "learned"},
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
    "esmm": {"labels": LABELS, "compression": "mixed_dimensions", "compress_above": 10},
}  # fmt: skip
QUICK = ("dlrm", "din", "esmm", "deepfm")


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
    (program,) = done.manifest.programs
    assert program.batch_size is None, "one program for any number of rows"
