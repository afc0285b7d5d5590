"""A trained run, read for export: its dense model and its tables, one after the other."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dlrm_jax.artifact.id_notes import IdsNote, KeysNote
from dlrm_jax.config import Config
from dlrm_jax.dynamic_ids.keys import Keys
from dlrm_jax.embedding import Table
from dlrm_jax.errors import UserError, shortened
from dlrm_jax.inference.loading import for_prediction
from dlrm_jax.inference.model_checks import check_model
from dlrm_jax.inference.noted_ids import note_ids, schema_of_stream
from dlrm_jax.inference.runs import find_checkpoint, reading
from dlrm_jax.inference.vocabularies import check_same_data
from dlrm_jax.mesh import host_mesh
from dlrm_jax.saved_config import trained_config
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.checksums import LoadedSums
from dlrm_jax.training.kept_data import find_kept
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.rows_by_id import STREAM, load_table
from dlrm_jax.training.sampling import noted_shift
from dlrm_jax.training.saved_id_maps import load_id_map
from dlrm_jax.training.serialization import load_model, load_rows


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A checkpoint, and the descriptions of its model.

    Attributes:
        checkpoint: directory of the checkpoint.
        metadata: metadata of the checkpoint.
        config: config of training.
        learner: learner without native kernels.
        vocabularies: directory that maps raw values to ids; None if there is none.
        id_rows: way by which ids become rows of the tables; None if ids are rows.
    """

    checkpoint: Path
    metadata: Mapping[str, Any]
    config: Config
    learner: Learner
    vocabularies: Path | None
    id_rows: IdsNote | None

    @classmethod
    def read(
        cls, run_or_checkpoint: Path, model: str | None = None, with_keys: bool = True
    ) -> TrainedModel:
        """Reads the descriptions; no arrays.

        Args:
            run_or_checkpoint: workdir of a run or one of its checkpoints.
            model: class of the user's own that the checkpoint names, which is imported.
            with_keys: whether tables with dynamic ids have their rows, and ids are what they were
                in training. Otherwise ids are rows: tables of a vocabulary have a row for each of
                its ids, and those of a stream the rows that they were trained with.

        Raises:
            UserError: there is no checkpoint, it is damaged or of two towers, it names a class
                that ``model`` doesn't, or an earlier version wrote it with the dynamic ids of a
                stream.
        """
        checkpoint = find_checkpoint(run_or_checkpoint)
        metadata = read_metadata(checkpoint)
        config = trained_config(checkpoint, metadata)
        check_model(checkpoint, config, model)
        schema = schema_of_stream(checkpoint, metadata)
        by_row = with_keys or STREAM in metadata
        jaxs = dataclasses.replace(for_prediction(config, 1, by_row), kernels="jax")
        vocabularies = find_kept(checkpoint)
        if vocabularies:
            check_same_data(vocabularies, checkpoint, metadata["identity"].get("data", ""))
        # An accelerator's memory may be too small for all tables; one at a time is read here.
        learner = make_learner(jaxs, host_mesh())
        id_rows = note_ids(config, learner.collection, schema) if with_keys else None
        return cls(checkpoint, metadata, config, learner, vocabularies, id_rows)

    @property
    def data(self) -> str:
        """The fingerprint of the training data; empty if it isn't known."""
        return self.metadata["identity"].get("data", "")

    @property
    def run_name(self) -> str:
        """The name of the run's directory."""
        return self.checkpoint.resolve().parent.parent.name

    @property
    def shift(self) -> float:
        """What probabilities add to the logits."""
        return noted_shift(self.config, self.metadata)

    @functools.cached_property
    def dense(self) -> DenseModel:
        """The arrays of the dense model."""
        specs = self.learner.state_specs()
        sums = LoadedSums(self.checkpoint, self.metadata)
        with reading(self.checkpoint):
            params, state = load_model(
                self.checkpoint, self.metadata, specs.params, specs.model_state, sums
            )
            sums.check()
        return DenseModel(self.learner, params, state)

    def tables(self) -> Iterator[tuple[Table, np.ndarray]]:
        """Yields each table with its rows, [rows, dim] of its own dtype; one is in memory."""
        for name, table in self.learner.collection.tables.items():
            # A shape and type without memory.
            spec = np.broadcast_to(np.zeros((), np.dtype(table.dtype)), (table.rows, table.dim))
            sums = LoadedSums(self.checkpoint, self.metadata)
            load = load_rows if table.ids else load_table
            with reading(self.checkpoint):
                found = load(self.checkpoint, self.metadata, name, {"table": spec}, sums)
                sums.check(together=False)
            yield table, np.asarray(found["table"])

    def noted_keys(self) -> Iterator[tuple[KeysNote, Keys]]:
        """Yields the ids of the rows of each map; one is in memory."""
        for note in self.id_rows.maps if self.id_rows else ():
            sums = LoadedSums(self.checkpoint, self.metadata)
            with reading(self.checkpoint):
                found = load_id_map(self.checkpoint, self.metadata, note.name, sums).whole_keys()
                sums.check(together=False)
            yield note, found


class DenseModel:
    """The dense model in prediction, as a pure function of named arrays.

    Args:
        learner: learner without native kernels.
        params: parameters, as nested dicts.
        state: other state of the model, see `TrainState.model_state`.
    """

    def __init__(self, learner: Learner, params: Any, state: Mapping[str, Any]):
        self._learner = learner
        self._rngs = state.get("rngs", {})
        self._statistics = state.get("statistics", {})
        leaves, self._tree = jax.tree.flatten_with_path((params, self._statistics))
        # The names by which a warm start asks for them: those of both without what they are.
        self._names = [".".join(str(key.key) for key in path[1:]) for path, _ in leaves]
        self.layers = {
            name: np.asarray(array) for name, (_, array) in zip(self._names, leaves, strict=True)
        }
        if len(self.layers) < len(leaves):
            twice = max(self._names, key=self._names.count)
            raise UserError(
                f"expected names of the model's arrays that are unique, {shortened(twice)} came "
                f"twice: rename an attribute of its class, dots in keys count as levels"
            )

    def logits(self, layers: Mapping[str, Any], dense: Any, vectors: Mapping[str, Any]) -> Any:
        """The logits of examples, [B] or [B, H].

        Args:
            layers: arrays by name.
            dense: dense features, [B, D].
            vectors: vectors by lookup.
        """
        return self.model(layers)(dense, vectors)

    def model(self, layers: Mapping[str, Any]) -> Any:
        """The model with these arrays, by name."""
        arrays = [layers[name] for name in self._names]
        params, statistics = jax.tree.unflatten(self._tree, arrays)
        parts = {"rngs": self._rngs, "statistics": statistics}
        return self._learner.model(params, {name: x for name, x in parts.items() if x})
