"""Writes an artifact: the directory that is a model, of a trained run."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlrm_jax.artifact.artifact import Artifact, split_vectors, write_layer
from dlrm_jax.artifact.dense_note import Precision
from dlrm_jax.artifact.dense_program import export_programs
from dlrm_jax.artifact.files import note_files
from dlrm_jax.artifact.key_files import write_keys
from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.artifact.notes import LayerNote, LookupNote, ProgramNote, TableNote
from dlrm_jax.artifact.row_formats import RowFormat
from dlrm_jax.attention.pointwise_kernels import for_any_device
from dlrm_jax.copied_files import copy_directory
from dlrm_jax.data.arrays import Dataset, Split
from dlrm_jax.data.metadata import METADATA, VOCABULARIES
from dlrm_jax.embedding import Lookup
from dlrm_jax.embedding.id_maps import note_of
from dlrm_jax.errors import UserError
from dlrm_jax.feature_names import file_name
from dlrm_jax.files import creating
from dlrm_jax.inference.artifact_scorer import PREPROCESSING, ArtifactScorer
from dlrm_jax.inference.noted_ids import note_features
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.serving import golden
from dlrm_jax.serving.calibration import Calibration, calibration_split
from dlrm_jax.serving.exported_metrics import ExportedMetrics
from dlrm_jax.serving.layer_choice import LayerChoice, choose_layers
from dlrm_jax.serving.quantized_layers import DenseLayers, check_quantizable
from dlrm_jax.serving.table_choice import Choice, choose_tables
from dlrm_jax.serving.table_variants import TableVariants
from dlrm_jax.serving.trained_model import TrainedModel

_LIBRARIES = ("dlrm-jax", "jax", "jaxlib", "flax", "numpy")
GOLDEN_BATCH = 8192
"""Most golden rows that are predicted at a time."""

_LAYERS, _PROGRAMS = "layers", "programs"


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        manifest: description of the artifact.
        choice: tables that are quantized; None if no loss was to be limited.
        layers: precision of the layers, and its loss; None if no loss was to be limited.
    """

    manifest: Manifest
    choice: Choice | None
    layers: LayerChoice | None = None


def export(
    model: TrainedModel,
    output: Path,
    name: str,
    row_format: RowFormat,
    data: Dataset | None = None,
    max_auc_loss: float | None = None,
    layers: Precision = "float32",
    calibration: Split | None = None,
) -> Exported:
    """Writes an artifact, completely or not at all.

    Args:
        model: trained model.
        output: directory to make.
        name: name of the model.
        row_format: row format of the tables.
        data: data of the run, for metrics and golden rows; None if they aren't there.
        max_auc_loss: AUC on the validation split that may be lost; tables that would lose more
            keep the rows of training, and then layers a longer type. None stores all tables in the
            row format, and the layers in their precision.
        layers: precision of the layers, which needs DLRM if it isn't float32.
        calibration: examples for int8; None for those of training, or else of validation.

    Raises:
        UserError: the directory exists or can't be written, the checkpoint can't be read, there
            are no validation examples to measure a loss with, or none to calibrate int8 on, or
            layers of the model can't have another precision.
    """
    if max_auc_loss is not None and (data is None or not len(data.validation)):
        raise UserError("max_auc_loss: expected data with a validation split, got none; give them")
    trained = DenseLayers.of(model)
    check_quantizable(model, trained, layers)
    if layers == "int8" and calibration is None:
        calibration = calibration_split(data)
    with creating(output) as directory:
        directory.mkdir()
        tables = TableVariants.write(model, directory, row_format, data is not None)
        described = describe(model, name, tables.exported)
        if model.vocabularies:
            copy_vocabularies(model.vocabularies, directory / PREPROCESSING)
        for note, keys in model.noted_keys():
            write_keys(directory, note, keys)
        artifact = exported = _written(trained, directory, described)
        quantized, choice, chosen, metrics, baseline = tables.names, None, None, {}, None
        measure = ExportedMetrics(artifact, tables, model, data) if data is not None else None
        if measure and max_auc_loss is not None:
            choice = choose_tables(quantized, measure.auc, max_auc_loss)
            quantized = choice.quantized
        if layers != "float32":
            seen = (
                Calibration.of(tables.read_by(artifact, quantized), calibration)
                if calibration
                else None
            )

            def written(precision: Precision) -> Artifact:
                return _written(trained.in_precision(precision, seen), directory, described)

            if measure and max_auc_loss is not None:
                chosen = choose_layers(
                    layers,
                    measure.auc(()),
                    lambda precision: measure.auc(quantized, written(precision)),
                    max_auc_loss,
                )
                layers = chosen.precision
            exported = written(layers)
        if measure:
            metrics, baseline = measure.summary(quantized, exported)
        notes = tables.keep(quantized)
        manifest = dataclasses.replace(
            exported.manifest, tables=notes, metrics=metrics, baseline=baseline
        )
        scorer = ArtifactScorer(Artifact.open(directory, manifest))
        predictor = Predictor(scorer, GOLDEN_BATCH, shift=manifest.shift)
        golden.write(directory, predictor, golden.choose(scorer.artifact, data))
        manifest = dataclasses.replace(manifest, files=note_files(directory))
        manifest.write(directory)
    return Exported(manifest, choice, chosen)


def _written(layers: DenseLayers, directory: Path, described: Manifest) -> Artifact:
    """The artifact with some layers, which take the place of those that are there."""
    for name in (_LAYERS, _PROGRAMS):
        shutil.rmtree(directory / name, ignore_errors=True)
    manifest = write_dense(layers.arrays, layers.logits, directory, described)
    return Artifact.open(directory, dataclasses.replace(manifest, dense_layers=layers.note))


def describe(model: TrainedModel, name: str, tables: tuple[TableNote, ...]) -> Manifest:
    """The manifest without dense model, metrics and files."""
    config, collection = model.config, model.learner.collection
    features = note_features(config, collection, model.id_rows)
    ends = np.cumsum([x.max_ids for x in features]).tolist()
    columns = {x.name: (end - x.max_ids, end) for x, end in zip(features, ends, strict=True)}
    return Manifest(
        name=name,
        step=int(model.metadata["step"]),
        made_by=made_by(),
        data=model.data,
        dense_features=config.dense_features,
        features=features,
        labels=config.labels,
        shift=model.shift,
        tables=tables,
        lookups=tuple(
            note_lookup(lookup, columns[lookup.feature]) for lookup in collection.lookups
        ),
        layers=(),
        programs=(),
        files={},
        id_rows=model.id_rows,
    )


def made_by() -> dict[str, str]:
    """The versions of the libraries that write artifacts."""
    return {x: importlib.metadata.version(x) for x in _LIBRARIES if _is_installed(x)}


def _is_installed(library: str) -> bool:
    """Whether a library is known by its name; this one isn't if it runs from a checkout."""
    try:
        importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def note_lookup(lookup: Lookup, columns: tuple[int, int]) -> LookupNote:
    """The note of a lookup that reads these columns of the ids."""
    id_map = {} if lookup.id_map is None else note_of(lookup.id_map)
    return LookupNote(lookup.name, lookup.feature, lookup.table, lookup.pooling, columns, id_map)


def write_dense(
    arrays: Mapping[str, np.ndarray],
    function: Callable[[Any, Any, Mapping[str, Any]], Any],
    directory: Path,
    manifest: Manifest,
) -> Manifest:
    """Writes layers and programs.

    Args:
        arrays: arrays of the dense model by name.
        function: function of arrays by name, dense features and vectors by lookup.
        directory: directory of the artifact.
        manifest: manifest without them.
    """
    (directory / _LAYERS).mkdir()
    (directory / _PROGRAMS).mkdir()
    layers = []
    for name, array in arrays.items():
        note = LayerNote(name, array.shape, str(array.dtype), f"{_LAYERS}/{file_name(name)}.npy")
        write_layer(directory / note.file, array)
        layers.append(note)
    programs, shapes = [], manifest.vector_shapes
    width = sum(map(math.prod, shapes.values()))

    def logits(layers: Any, dense: Any, vectors: Any) -> Any:
        with for_any_device():
            return function(layers, dense, split_vectors(shapes, vectors))

    made = export_programs(logits, arrays, manifest.dense_features, width)
    for size, content in made.items():
        note = ProgramNote(size, f"{_PROGRAMS}/{size or 'any'}.jax_export")
        (directory / note.file).write_bytes(content)
        programs.append(note)
    return dataclasses.replace(manifest, layers=tuple(layers), programs=tuple(programs))


def copy_vocabularies(vocabularies: Path, copy: Path) -> None:
    """Copies what maps raw values to ids to a new directory."""
    copy.mkdir()
    copy_directory(vocabularies / VOCABULARIES, copy / VOCABULARIES)
    shutil.copy2(vocabularies / METADATA, copy / METADATA)
