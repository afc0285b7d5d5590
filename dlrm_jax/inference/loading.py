"""Loads what predicts from a checkpoint: parameters and tables, without optimizer state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from dlrm_jax.artifact.id_rows import IdRows
from dlrm_jax.config import Config
from dlrm_jax.dynamic_ids.key_index import KeyIndex
from dlrm_jax.inference.model_checks import check_model
from dlrm_jax.inference.noted_ids import note_features, note_ids, schema_of_stream
from dlrm_jax.inference.runs import reading
from dlrm_jax.saved_config import trained_config
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.checksums import LoadedSums
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.memory import release_memory
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.rows_by_id import load_table
from dlrm_jax.training.sampling import noted_shift
from dlrm_jax.training.saved_id_maps import load_id_map
from dlrm_jax.training.serialization import load_model, load_rows


class Trained(NamedTuple):
    """A model that predicts.

    Attributes:
        config: config of training.
        learner: learner on the mesh of prediction.
        state: parameters and tables.
        fingerprint: fingerprint of the data of training.
        shift: number to add to the logits, see `dlrm_jax.training.sampling`.
        id_rows: function that gives ids their rows; None if ids are rows.
    """

    config: Config
    learner: Learner
    state: TrainState
    fingerprint: str
    shift: float
    id_rows: IdRows | None


def load_trained(checkpoint: Path, mesh: Mesh, batch_size: int, model: str | None) -> Trained:
    """See `Predictor.load`."""
    metadata = read_metadata(checkpoint)
    config = trained_config(checkpoint, metadata)
    check_model(checkpoint, config, model)
    return load_checked(checkpoint, metadata, config, mesh, batch_size)


def load_checked(
    checkpoint: Path, metadata: Mapping[str, Any], config: Config, mesh: Mesh, batch_size: int
) -> Trained:
    """As `load_trained`, of a checkpoint that has been read and whose model may be imported."""
    schema = schema_of_stream(checkpoint, metadata)
    learner = make_learner(for_prediction(config, batch_size, schema is not None), mesh)
    release_memory()
    specs = learner.state_specs()
    sums = LoadedSums(checkpoint, metadata)
    with reading(checkpoint):
        params, model_state = load_model(
            checkpoint, metadata, specs.params, specs.model_state, sums
        )
        embedding = learner.collection.from_arrays(
            lambda table: (load_rows if table.ids else load_table)(
                checkpoint, metadata, table.name, learner.collection.array_specs(table.name), sums
            ),
            seed=0,
        )
        id_rows = None
        if schema is not None and (note := note_ids(config, learner.collection, schema)):
            maps = {x.name: load_id_map(checkpoint, metadata, x.name, sums) for x in note.maps}
            indexes = {
                x.name: KeyIndex(maps[x.name].whole_keys(), x.defaults, x.seed) for x in note.maps
            }
            features = note_features(config, learner.collection, note)
            id_rows = IdRows(features, note, indexes)
        sums.check()
    state = TrainState(metadata["step"], params, None, embedding, model_state)
    fingerprint = metadata["identity"].get("data", "")
    return Trained(config, learner, state, fingerprint, noted_shift(config, metadata), id_rows)


def for_prediction(config: Config, batch_size: int, by_row: bool = False) -> Config:
    """The config for prediction: frozen tables without optimizer state, default placements.

    Args:
        config: config of training.
        batch_size: number of examples predicted at a time.
        by_row: whether tables with dynamic ids have their rows; otherwise they have a row for each
            id of a vocabulary.
    """
    return dataclasses.replace(
        config,
        frozen_tables=tuple(dict.fromkeys(config.table_of.values())),
        table_optimizers=(),
        dynamic_ids=config.dynamic_ids if by_row else (),
        host_tables=(),
        placements=(),
        plan="",
        loss="bce",  # not read; its own may be a function that would be imported
        metrics=(),
        best_metric="auc",
        kernels="auto" if config.kernels == "native" else config.kernels,  # here may be none
        accumulation_steps=1,
        batch_size=batch_size,
        evaluation_batch_size=batch_size,
    )
