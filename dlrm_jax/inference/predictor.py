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
from dlrm_jax.data.check import check_ids
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import as_mesh
from dlrm_jax.saved_config import trained_config
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.checksums import LoadedSums
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

    def __repr__(self) -> str:
        """One line: a notebook would show all arrays and descriptions otherwise."""
        axes = self.learner.axes
        return (
            f"Predictor({self.config.model} of {len(self.config.table_rows)} tables, mesh "
            f"{axes.groups}x{axes.shards}, step {int(self.state.step)})"
        )

    @classmethod
    def load(
        cls,
        checkpoint: Path | str,
        mesh: Mesh | str,
        batch_size: int = 8192,
        model: str | None = None,
    ) -> Predictor:
        """Reads parameters and tables, one slab at a time.

        Args:
            checkpoint: directory of the checkpoint, named by its step.
            mesh: mesh of prediction, or its shape, ``"2x4"``; it may differ from that of training.
            batch_size: number of rows predicted at a time; the mesh must divide it.
            model: class of your own that the checkpoint was trained with, ``"MODULE:CLASS"``, which
                is imported. None for a model of the zoo.

        Raises:
            UserError: there is no checkpoint, or it is damaged or of another kind; it names a
                class that ``model`` doesn't; the mesh doesn't divide the batch.
        """
        checkpoint, mesh = Path(checkpoint), as_mesh(mesh)
        metadata = read_metadata(checkpoint)
        config = trained_config(checkpoint, metadata)
        check_model(checkpoint, config, model)
        learner = make_learner(_for_prediction(config, batch_size), mesh)
        release_memory()
        specs = learner.state_specs()
        sums = LoadedSums(checkpoint, metadata)
        params, model_state = load_model(
            checkpoint, metadata, specs.params, specs.model_state, sums
        )
        embedding = learner.collection.from_arrays(
            lambda table: load_table(
                checkpoint, metadata, table.name, learner.collection.array_specs(table.name), sums
            ),
            seed=0,
        )
        sums.check()
        state = TrainState(metadata["step"], params, None, embedding, model_state)
        return cls(config, learner, state, batch_size)

    def check_features(self, split: Split) -> None:
        """Checks that examples have the features of the training data, and ids of its tables.

        Raises:
            UserError: they have others, or an id isn't a row of its table; see `check_ids`.
        """
        self._check_dense(split)
        check_ids(
            split,
            self.config.table_rows,
            self.config.table_bag_lengths,
            "examples",
            columns=self.config.table_names,
        )

    def _check_dense(self, split: Split) -> None:
        if split.dense_features != self.config.dense_features:
            raise UserError(
                f"the model was trained with {self.config.dense_features} dense features, got "
                f"examples with {split.dense_features}"
            )

    def probabilities(
        self, split: Split, *, check: bool = True
    ) -> Iterator[Float64[np.ndarray, " B"]]:
        """Yields the probability of label 1 of every example, in order, a batch at a time.

        Args:
            split: examples with the features of the training data.
            check: whether to look for ids out of range first, which reads them once more.

        Raises:
            UserError: the examples have other features, see `check_features`, or a prediction
                isn't finite; the message names its row.
        """
        if check:
            self.check_features(split)
        self._check_dense(split)
        predict, first = make_predict(self.learner), 0
        for logits in predictions(self.learner, predict, self.state, split, self.batch_size):
            finite = np.isfinite(logits)
            if not finite.all():
                raise UserError(_not_finite(split, first + int(np.argmin(finite))))
            # In float64: float32 can't resolve probabilities close to 1.
            yield np.exp(-np.logaddexp(0, -logits.astype(np.float64)))
            first += len(logits)


def _not_finite(split: Split, row: int) -> str:
    message = f"the prediction of row {row} (from 0) isn't finite"
    dense = split.take(np.array([row])).dense[0]
    if not len(dense):
        return f"{message}: the tables or the parameters of the model are damaged"
    column = np.argmax(np.nan_to_num(np.abs(dense), nan=np.inf))
    return (
        f"{message}: the largest of its dense features is number {column} (from 0), "
        f"{dense[column]}; correct it if it is out of range"
    )


def check_model(checkpoint: Path, config: Config, model: str | None) -> None:
    """Checks that the user names the code that a checkpoint would have imported.

    A checkpoint may come from anybody, and importing a module runs it.

    Raises:
        UserError: the checkpoint names a class of its own and ``model`` is None, or another one.
    """
    if model is None and ":" in config.model:
        raise UserError(
            f"checkpoint {checkpoint} names {config.model} as the class of its model. Importing it "
            f"runs code: if you trust that code, name it as model (--model={config.model})"
        )
    if model not in (None, config.model):
        raise UserError(f"model: checkpoint {checkpoint} names {config.model!r}, got {model!r}")


def _for_prediction(config: Config, batch_size: int) -> Config:
    """The config for prediction: frozen tables without optimizer state, default placements."""
    return dataclasses.replace(
        config,
        frozen_tables=tuple(dict.fromkeys(config.table_of.values())),
        table_optimizers=(),
        placements=(),
        plan="",
        kernels="auto" if config.kernels == "native" else config.kernels,  # here may be none
        accumulation_steps=1,
        batch_size=batch_size,
        evaluation_batch_size=batch_size,
    )
