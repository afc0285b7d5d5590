"""A model of this program that leaves: that of a run, or of an artifact."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from dlrm_jax.artifact.artifact import read_layer
from dlrm_jax.artifact.files import check_content, check_present
from dlrm_jax.artifact.manifest import Manifest, is_artifact
from dlrm_jax.artifact.retrieval_note import check_click_model
from dlrm_jax.artifact.row_formats import decode
from dlrm_jax.artifact.tables import map_rows
from dlrm_jax.conversion.architecture import (
    ALIKE,
    BESIDE,
    DIFFERENT,
    Architecture,
    Kind,
    architecture_of,
)
from dlrm_jax.conversion.tensor_names import Layers
from dlrm_jax.errors import UserError
from dlrm_jax.serving.trained_model import TrainedModel

_CONVERTED = (
    "what can be converted is DLRM, and DCN-v2 with matrices of low rank, a bottom MLP and the "
    "deep part stacked on the cross layers; without normalization"
)
_TRAINED = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Read:
    """What a feature reads.

    Attributes:
        feature: name of the feature.
        table: name of the table.
        pooling: kind of pooling of a bag.
        max_ids: most ids of a bag.
    """

    feature: str
    table: str
    pooling: str
    max_ids: int


@dataclasses.dataclass(frozen=True)
class OwnModel:
    """A model with arrays of float32.

    Attributes:
        path: checkpoint or artifact.
        step: number of training steps.
        shift: number that probabilities add to the logits.
        reads: features, in their order.
        layers: arrays of the dense model by name.
        architecture: the widths.
        interactions: interactions of DLRM that have these widths; one if it is known.
        shapes: rows and numbers of a row of each table by name.
        tables: function that yields each table with its rows, one after the other.
        compute_dtype: type that predictions are computed in; empty for an artifact, which doesn't
            say it.
    """

    path: Path
    step: int
    shift: float
    reads: tuple[Read, ...]
    layers: Mapping[str, np.ndarray]
    architecture: Architecture
    interactions: tuple[Kind, ...]
    shapes: Mapping[str, tuple[int, int]]
    tables: Callable[[], Iterator[tuple[str, np.ndarray]]]
    compute_dtype: str = ""

    @classmethod
    def open(cls, path: Path) -> OwnModel:
        """Reads the layers of a run, its checkpoint, or an artifact.

        Raises:
            UserError: it can't be read, or is another model than PyTorch's.
        """
        if is_artifact(path):
            return _of_artifact(path)
        return cls.of(TrainedModel.read(path, with_keys=False))

    @classmethod
    def of(cls, model: TrainedModel) -> OwnModel:
        """The model of a run; see `open`."""
        return _of_run(model)


def _of_run(model: TrainedModel) -> OwnModel:
    config, path = model.config, model.checkpoint
    if config.model not in ("dlrm", "dcn_v2"):
        raise UserError(f"{path} is a model {config.model!r}; {_CONVERTED}")
    lengths = dict(zip(config.table_names, config.table_bag_lengths, strict=True))
    lookups = model.learner.collection.lookups
    if any(x.id_map is not None or x.name != x.feature for x in lookups):
        raise UserError(f"{path}: its tables are compressed or have weights of rows; {_CONVERTED}")
    reads = [Read(x.feature, x.table, x.pooling, lengths[x.feature]) for x in lookups]
    tables = {x.name: (x.rows, x.dim) for x in model.learner.collection.tables.values()}
    layers = {name: array.astype(np.float32) for name, array in model.dense.layers.items()}

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        for table, rows in model.tables():
            yield table.name, rows.astype(np.float32, copy=False)

    kinds = [Kind(config.interaction, config.self_interaction)]
    step = int(model.metadata["step"])
    found = _checked(path, step, model.shift, reads, layers, tables, arrays, kinds)
    return dataclasses.replace(found, compute_dtype=config.compute_dtype)


def _of_artifact(path: Path) -> OwnModel:
    manifest = Manifest.read(path)
    check_click_model(path, manifest.retrieval)
    check_present(path, manifest.files)
    if manifest.id_rows and manifest.id_rows.schema is None:
        raise UserError(
            f"{path}: its rows have keys, ids of a vocabulary, which other programs don't look up; "
            f"give the run, whose tables are written by id"
        )
    lost, flags = [], []
    if rounded := [x.name for x in manifest.tables if x.row_format not in _TRAINED]:
        lost.append(f"table {rounded[0]} has rows in integers")
        flags.append("--tables=float32")
    dense = manifest.dense_layers
    if dense and dense.precision != "float32":
        lost.append(f"its layers are in {dense.precision}")
        flags.append("--layers=float32")
    if lost:
        raise UserError(
            f"{path}: {', and '.join(lost)}; give the run, or export it with {' '.join(flags)}"
        )
    if any(x.id_map or x.name != x.feature for x in manifest.lookups) or len(manifest.labels) > 1:
        raise UserError(
            f"{path}: its tables are compressed, or it has several labels; {_CONVERTED}"
        )
    lengths = {x.name: x.max_ids for x in manifest.features}
    reads = [Read(x.feature, x.table, x.pooling, lengths[x.feature]) for x in manifest.lookups]
    tables = {x.name: (x.rows, x.dim) for x in manifest.tables}
    for note in manifest.layers:
        check_content(path, note.file, manifest.files[note.file])
    layers = {x.name: read_layer(path, x).astype(np.float32) for x in manifest.layers}

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        for note in manifest.tables:
            check_content(path, note.file, manifest.files[note.file])
            yield note.name, decode(map_rows(path, note).rows, note.row_format, note.dim)

    kinds = [DIFFERENT, ALIKE, BESIDE]
    shift, step = manifest.shift, manifest.step
    return _checked(path, step, shift, reads, layers, tables, arrays, kinds)


def _checked(
    path: Path,
    step: int,
    shift: float,
    reads: list[Read],
    layers: Mapping[str, np.ndarray],
    tables: Mapping[str, tuple[int, int]],
    arrays: Callable[[], Iterator[tuple[str, np.ndarray]]],
    kinds: list[Kind],
) -> OwnModel:
    counts = Layers.of(layers, "here")
    if others := sorted(set(counts.here()) ^ layers.keys()):
        has = "has" if others[0] in layers else "lacks"
        raise UserError(f"{path} {has} the layer {others[0]}; {_CONVERTED}")
    shapes = {name: array.shape for name, array in layers.items()}
    if not counts.bottom or not shapes["bottom.layers.0.kernel"][0]:
        raise UserError(f"{path} has no dense features, which PyTorch's models need")
    of_reads = [tables[read.table] for read in reads]
    architecture, fitting = architecture_of(str(path), shapes, of_reads, kinds)
    about = path, step, shift, tuple(reads), layers, architecture, tuple(fitting)
    return OwnModel(*about, tables, arrays)
