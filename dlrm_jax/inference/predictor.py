"""Predicts with the model of a checkpoint: without optimizers, on any mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float64

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Split
from dlrm_jax.errors import UserError
from dlrm_jax.saved_config import trained_config
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.evaluation import predictions
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.orbax_io import release_memory
from dlrm_jax.training.serialization import load_model, load_table
from dlrm_jax.training.step import make_predict


@dataclasses.dataclass(frozen=True)
class Predictor:
    """What predicts.

    Attributes:
        config: config of training; mesh, placements and batch sizes differ here.
        learner: learner on the mesh of prediction.
        state: parameters and tables; there is no optimizer state.
        batch_size: number of examples predicted at a time, over all devices.
    """

    config: Config
    learner: Learner
    state: TrainState
    batch_size: int

    @classmethod
    def load(cls, checkpoint: Path, mesh: Mesh, batch_size: int = 8192) -> Predictor:
        """Reads parameters and tables, one slab at a time.

        Args:
            checkpoint: directory of the checkpoint, named by its step.
            mesh: mesh of prediction; it may differ from that of training.
            batch_size: number of rows predicted at a time; the mesh must divide it.

        Raises:
            UserError: there is no checkpoint, or it is damaged or of another kind; the mesh
                doesn't divide the batch.
        """
        metadata = read_metadata(checkpoint)
        config = trained_config(checkpoint, metadata)
        learner = make_learner(_for_prediction(config, batch_size), mesh)
        release_memory()
        specs = learner.state_specs()
        params, model_state = load_model(checkpoint, metadata, specs.params, specs.model_state)
        embedding = learner.collection.from_arrays(
            lambda table: load_table(
                checkpoint, metadata, table.name, learner.collection.array_specs(table.name)
            ),
            seed=0,
        )
        state = TrainState(metadata["step"], params, None, embedding, model_state)
        return cls(config, learner, state, batch_size)

    def probabilities(self, split: Split) -> Iterator[Float64[np.ndarray, " B"]]:
        """Yields the probability of label 1 of every example, in order, a batch at a time.

        Args:
            split: examples with the features of the training data; see `data.check.check_ids`.

        Raises:
            UserError: the examples have another number of dense features, or a prediction isn't
                finite; the message names its row.
        """
        if split.dense_features != self.config.dense_features:
            raise UserError(
                f"the model was trained with {self.config.dense_features} dense features, got "
                f"examples with {split.dense_features}"
            )
        predict, first = make_predict(self.learner), 0
        for logits in predictions(self.learner, predict, self.state, split, self.batch_size):
            finite = np.isfinite(logits)
            if not finite.all():
                raise UserError(
                    f"the prediction of row {first + np.argmin(finite)} (from 0) isn't finite; "
                    f"look for values out of range among its dense features"
                )
            # In float64: float32 can't resolve probabilities close to 1.
            yield np.exp(-np.logaddexp(0, -logits.astype(np.float64)))
            first += len(logits)


def _for_prediction(config: Config, batch_size: int) -> Config:
    """The config for prediction: frozen tables without optimizer state, default placements."""
    return dataclasses.replace(
        config,
        frozen_tables=tuple(dict.fromkeys(config.table_of.values())),
        table_optimizers=(),
        placements=(),
        plan="",
        accumulation_steps=1,
        batch_size=batch_size,
        evaluation_batch_size=batch_size,
    )
