"""The trained model of a checkpoint, on a mesh, as what gives logits."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator

import numpy as np
from jaxtyping import Float32

from dlrm_jax.artifact.id_rows import IdRows
from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Split
from dlrm_jax.inference.scorer import Inputs
from dlrm_jax.training.evaluation import predictions, rows_as_they_are
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.step import Predict, make_predict

_SMALL_BATCHES = (1, 16, 256)


@dataclasses.dataclass(frozen=True)
class CheckpointScorer:
    """A learner and the state of a checkpoint.

    Attributes:
        config: config of training; mesh, placements and batch sizes differ here.
        learner: learner on the mesh of prediction.
        state: parameters and tables; there is no optimizer state.
        as_ids: function of ids that gives the rows of the tables; see `evaluate`. If it is
            `IdRows`, ids are those of a stream's values.
    """

    config: Config
    learner: Learner
    state: TrainState
    as_ids: Callable[[np.ndarray], np.ndarray] = rows_as_they_are

    def __repr__(self) -> str:
        """One line: a notebook would show all arrays and descriptions otherwise."""
        axes = self.learner.axes
        return (
            f"{self.config.model} of {len(self.config.table_rows)} tables, mesh "
            f"{axes.groups}x{axes.shards}, step {int(self.state.step)}"
        )

    @property
    def inputs(self) -> Inputs:
        """What it expects of examples."""
        return inputs_of_config(self.config, isinstance(self.as_ids, IdRows))

    def batch_sizes(self, most: int) -> tuple[int, ...]:
        """See `Scorer`; the devices of the mesh divide them."""
        devices = self.learner.mesh.size
        small = {-(-size // devices) * devices for size in _SMALL_BATCHES}
        return (*sorted(size for size in small if size < most), most)

    @functools.cached_property
    def compiled(self) -> Predict:
        """The jitted prediction, which keeps a program for each batch size."""
        return make_predict(self.learner)

    def logits(
        self, split: Split, batch_size: int, shared: Collection[str] = ()
    ) -> Iterator[Float32[np.ndarray, "B *_"]]:
        """See `Scorer`; features that all examples share are looked up for each."""
        del shared
        given = self.learner, self.compiled, self.state, split, batch_size, self.as_ids
        return predictions(*given)


def inputs_of_config(config: Config, has_raw_ids: bool = False) -> Inputs:
    """What the model of a config expects of examples, see `Inputs`."""
    names, rows, lengths = config.table_names, config.table_rows, config.table_bag_lengths
    return Inputs(config.dense_features, names, rows, lengths, config.labels, has_raw_ids)
