"""The state of a run while it trains, as what `dlrm_jax.serving.export` writes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from dlrm_jax.artifact.id_notes import KeysNote
from dlrm_jax.config import Config
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.dynamic_ids.keys import Keys
from dlrm_jax.embedding import Table
from dlrm_jax.inference.loading import for_prediction
from dlrm_jax.inference.noted_ids import fields_of, note_ids
from dlrm_jax.mesh import host_mesh
from dlrm_jax.processes import Ask
from dlrm_jax.publishing.state_reads import KEYS, rows_from
from dlrm_jax.serving.trained_model import DenseModel, TrainedModel
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.kept_data import find_kept
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.sampling import KEPT_NEGATIVES

_BLOCK = 1 << 16  # rows


@dataclasses.dataclass(frozen=True)
class LiveModel(TrainedModel):
    """A state that is exported as its checkpoint would be, which needn't be there.

    Attributes:
        state: state; it mustn't be donated meanwhile.
        ask: function that answers requests for parts of the state, see `state_reads`.
        keys: ids of the rows of the state, by map.
    """

    state: TrainState
    ask: Ask
    keys: Mapping[str, Keys]

    @functools.cached_property
    def dense(self) -> DenseModel:
        """The arrays of the dense model, as copies."""
        dense = DenseModel(self.learner, self.state.params, self.state.model_state)
        # Views of the state's memory would keep the next step from using it again.
        dense.layers = {name: np.array(array) for name, array in dense.layers.items()}
        return dense

    def tables(self) -> Iterator[tuple[Table, np.ndarray]]:
        """Yields each table with its rows, as `TrainedModel.tables`."""
        for table in self.learner.collection.tables.values():
            rows = np.empty((table.rows, table.dim), np.dtype(table.dtype))
            for first, block in self.blocks(table.name):
                rows[first : first + len(block)] = block
            yield table, rows

    def blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the rows of a table, block by block, each with the number of its first row."""
        end = self.learner.collection.tables[name].rows
        for first in range(0, end, _BLOCK):
            yield first, self.ask(rows_from(name, first, min(first + _BLOCK, end)))

    def noted_keys(self) -> Iterator[tuple[KeysNote, Keys]]:
        """Yields the ids of the rows of each map, as `TrainedModel.noted_keys`."""
        for note in self.id_rows.maps if self.id_rows else ():
            yield note, self.keys[note.name]


class LiveModels:
    """The states of a run.

    Args:
        config: config of the run.
        learner: learner of the run.
        data: fingerprint of the data of training.
        kept_negatives: share of the training examples of label 0 that preparation has kept.
        workdir: directory of the run.
        schema: meaning of the columns of a stream; None for prepared data.

    Attributes:
        workdir: directory of the run.
        trained: collection that the states are of.
    """

    def __init__(
        self,
        config: Config,
        learner: Learner,
        data: str,
        kept_negatives: float,
        workdir: Path,
        schema: Schema | None = None,
    ):
        self._config, self.trained, self.workdir = config, learner.collection, workdir
        self._noted: Mapping[str, object] = {
            "identity": {"data": data},
            KEPT_NEGATIVES: kept_negatives,
        }
        jaxs = dataclasses.replace(for_prediction(config, 1, by_row=True), kernels="jax")
        self._learner = make_learner(jaxs, host_mesh())
        fields = fields_of(schema) if schema else None
        self._id_rows = note_ids(config, self._learner.collection, fields)

    def of(self, state: TrainState, step: int, ask: Ask) -> LiveModel:
        """The model of a state after so many steps.

        Args:
            state: state.
            step: number of steps.
            ask: function that answers requests for parts of the state.
        """
        checkpoint = self.workdir / "checkpoints" / f"{step:08d}"
        return LiveModel(
            checkpoint,
            {"step": step, **self._noted},
            self._config,
            self._learner,
            find_kept(checkpoint),
            self._id_rows,
            state,
            ask,
            ask(KEYS),
        )
