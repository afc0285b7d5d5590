"""An artifact, loaded by this project."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from dlrm_jax.data.arrays import Examples
from dlrm_jax.files import cache_directory
from dlrm_jax.inference.predictor import Predictor
from experiments.benchmarks.peers.workers.predicting import Predict, serve


def load(artifact: Path, _: str) -> Predict:
    """The predictions of `Predictor`, with all its checks."""
    jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "xla"))
    predictor = Predictor.load(artifact)

    def predict(dense: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return predictor.predict(Examples(dense, ids, np.zeros(len(dense), np.float32)))

    return predict


if __name__ == "__main__":
    serve(load, ("jax", "numpy"))
