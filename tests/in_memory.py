"""A trained model that no checkpoint holds, for exports of many configs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dlrm_jax.artifact.row_formats import RowFormat, decode, encode
from dlrm_jax.config import Config
from dlrm_jax.embedding import Table
from dlrm_jax.inference.checkpoint_scorer import CheckpointScorer
from dlrm_jax.inference.loading import for_prediction
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.mesh import make_mesh
from dlrm_jax.serving.trained_model import DenseModel, TrainedModel
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.learner import TrainState


@dataclasses.dataclass(frozen=True)
class InMemory(TrainedModel):
    """A model with random numbers in place of trained ones."""

    state: TrainState

    @classmethod
    def of(cls, config: Config, kept_negatives: float = 1.0) -> InMemory:
        jaxs = dataclasses.replace(for_prediction(config, 256), kernels="jax")
        learner = make_learner(jaxs, make_mesh("1x1"))
        specs = learner.state_specs()
        embedding = learner.collection.from_arrays(rows_of, seed=0)
        params, model_state = filled(specs.params), filled(specs.model_state, positive=True)
        state = TrainState(np.int32(3), params, None, embedding, model_state)
        metadata = {"step": 3, "identity": {"data": "x"}, "kept_negatives": kept_negatives}
        return cls(Path("memory"), metadata, config, learner, None, None, state)

    @property
    def dense(self) -> DenseModel:  # pyright: ignore[reportIncompatibleVariableOverride]
        return DenseModel(self.learner, self.state.params, self.state.model_state)

    def tables(self) -> Iterator[tuple[Table, np.ndarray]]:
        for table, arrays in self.learner.collection.to_arrays(self.state.embedding):
            yield table, np.asarray(arrays["table"])

    def rounded(self, row_format: RowFormat) -> InMemory:
        """The model with the numbers that a row format has for its float32 tables."""

        def rows(table: Table) -> dict[str, np.ndarray]:
            stored = encode(rows_of(table)["table"], row_format)
            return {"table": decode(stored, row_format, table.dim)}

        embedding = self.learner.collection.from_arrays(rows, seed=0)
        return dataclasses.replace(self, state=dataclasses.replace(self.state, embedding=embedding))

    def predictor(self, batch_size: int = 256) -> Predictor:
        scorer = CheckpointScorer(self.config, self.learner, self.state)
        return Predictor(scorer, batch_size, shift=self.shift)


def filled(specs: Any, positive: bool = False) -> Any:
    """Random numbers in place of trained ones; variances are positive, and integers are 0."""
    random = np.random.default_rng(1)

    def array(x: Any) -> np.ndarray:
        values = random.uniform(0.2 if positive else -0.6, 0.6, x.shape)
        return np.zeros(x.shape, x.dtype) if x.dtype.kind in "iu" else values.astype(x.dtype)

    return jax.tree.map(array, specs)


def rows_of(table: Table) -> dict[str, np.ndarray]:
    random = np.random.default_rng(table.rows)
    rows = random.normal(0, 0.5, (table.rows, table.dim)).astype(np.float32)
    return {"table": rows.astype(table.dtype)}
