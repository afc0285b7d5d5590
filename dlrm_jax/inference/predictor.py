"""A trained model for prediction: from a checkpoint, without optimizers, on any mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_origin

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float64

from dlrm_jax.config import FIELD_TYPES, Config, saved_fields
from dlrm_jax.data.arrays import Split
from dlrm_jax.errors import UserError
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.evaluation import predictions
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.serialization import (
    load_model,
    load_table,
    read_metadata,
    release_memory,
)
from dlrm_jax.training.step import make_predict


def trained_config(checkpoint: Path, metadata: Mapping[str, Any]) -> Config:
    """The config that a checkpoint was trained with.

    Args:
        checkpoint: its directory, for messages.
        metadata: from `serialization.read_metadata`.

    Raises:
        UserError: the config isn't there, or has other fields than this program's.
    """
    fields = metadata.get("config")
    if fields is None:
        raise UserError(
            f"checkpoint {checkpoint} doesn't say which model it is of: expected one that "
            f"python -m dlrm_jax train wrote"
        )
    fields = saved_fields(fields)
    if unknown := fields.keys() - FIELD_TYPES.keys():
        raise UserError(
            f"checkpoint {checkpoint} was written by a later version of this program: its config "
            f"has the fields {', '.join(sorted(unknown))}, which this one lacks; predict with that "
            f"version"
        )
    kwargs: dict[str, Any] = {
        name: tuple(value) if get_origin(FIELD_TYPES[name]) is tuple else value
        for name, value in fields.items()
    }
    return Config(**kwargs)


@dataclasses.dataclass(frozen=True)
class Predictor:
    """What predicts.

    Attributes:
        config: that it was trained with; the mesh, the placements and the batches are others.
        learner: on the mesh of prediction.
        state: parameters and tables; there is no optimizer state.
        batch_size: of prediction, over all devices.
    """

    config: Config
    learner: Learner
    state: TrainState
    batch_size: int

    @classmethod
    def load(cls, checkpoint: Path, mesh: Mesh, batch_size: int = 8192) -> Predictor:
        """Reads parameters and tables, one slab at a time.

        Args:
            checkpoint: a directory named by its step.
            mesh: any; it needn't be that of training.
            batch_size: rows predicted at a time; the mesh must divide it.

        Raises:
            UserError: there is no checkpoint, or it is damaged or of something else; the mesh
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
            split: of the same features as the data of training; see `data.check.check_ids`.

        Raises:
            UserError: the examples have another number of dense features, or a prediction isn't
                finite, naming its row.
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
            # In float64: close to 1, float32 would lose what the logit says.
            yield np.exp(-np.logaddexp(0, -logits.astype(np.float64)))
            first += len(logits)


def _for_prediction(config: Config, batch_size: int) -> Config:
    """The same model; frozen tables have no optimizer state, and a mesh its own placements."""
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
