"""Writes an artifact: the directory that is a model, of a trained run."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from dlrm_jax.artifact.artifact import Artifact, split_vectors, write_layer
from dlrm_jax.artifact.dense_program import export_programs
from dlrm_jax.artifact.files import note_files
from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.artifact.notes import BaselineNote, FeatureNote, LayerNote, LookupNote, ProgramNote
from dlrm_jax.artifact.row_formats import RowFormat
from dlrm_jax.artifact.tables import map_lookups
from dlrm_jax.data.arrays import Dataset
from dlrm_jax.data.metadata import METADATA, VOCABULARIES, Metadata
from dlrm_jax.embedding import Lookup
from dlrm_jax.embedding.id_maps import note_of
from dlrm_jax.errors import UserError
from dlrm_jax.feature_names import file_name
from dlrm_jax.files import creating
from dlrm_jax.inference.artifact_scorer import PREPROCESSING, ArtifactScorer, inputs_of
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.inference.probabilities import sigmoid
from dlrm_jax.serving import golden
from dlrm_jax.serving.dense_layers import note_dense
from dlrm_jax.serving.drift import baseline_of
from dlrm_jax.serving.table_choice import Choice, choose_tables
from dlrm_jax.serving.table_variants import TableVariants
from dlrm_jax.serving.trained_model import TrainedModel
from dlrm_jax.training.measures import measures_of

_LIBRARIES = ("dlrm-jax", "jax", "jaxlib", "flax", "numpy")
_BATCH = 8192
_MEASURED = ("validation", "test")


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        manifest: description of the artifact.
        choice: tables that are quantized; None if no loss was to be limited.
    """

    manifest: Manifest
    choice: Choice | None


def export(
    model: TrainedModel,
    output: Path,
    name: str,
    row_format: RowFormat,
    data: Dataset | None = None,
    max_auc_loss: float | None = None,
) -> Exported:
    """Writes an artifact, completely or not at all.

    Args:
        model: trained model.
        output: directory to make.
        name: name of the model.
        row_format: row format of the tables.
        data: data of the run, for metrics and golden rows; None if they aren't there.
        max_auc_loss: AUC on the validation split that may be lost; tables that would lose more
            keep the rows of training. None stores all tables in the row format.

    Raises:
        UserError: the directory exists or can't be written, the checkpoint can't be read, or there
            are no validation examples to measure a loss with.
    """
    if max_auc_loss is not None and (data is None or not len(data.validation)):
        raise UserError("max_auc_loss: expected data with a validation split, got none; give them")
    with creating(output) as directory:
        directory.mkdir()
        tables = TableVariants.write(model, directory, row_format, data is not None)
        manifest = _describe(model, name, tables)
        dense = model.dense
        manifest = write_dense(dense.layers, dense.logits, directory, manifest)
        note = note_dense(dense.model(dense.layers))
        manifest = dataclasses.replace(manifest, dense_layers=note)
        if model.vocabularies:
            copy_vocabularies(model.vocabularies, directory / PREPROCESSING)
        artifact = Artifact.open(directory, manifest)
        quantized, choice, metrics, baseline = tables.names, None, {}, None
        if data is not None:
            measure = _Measure(artifact, tables, model, data)
            if max_auc_loss is not None:
                choice = choose_tables(quantized, measure.auc, max_auc_loss)
                quantized = choice.quantized
            metrics, baseline = measure.summary(quantized)
        notes = tables.keep(quantized)
        manifest = dataclasses.replace(manifest, tables=notes, metrics=metrics, baseline=baseline)
        scorer = ArtifactScorer(Artifact.open(directory, manifest))
        predictor = Predictor(scorer, _BATCH, shift=manifest.shift)
        golden.write(directory, predictor, golden.choose(inputs_of(manifest), data))
        manifest = dataclasses.replace(manifest, files=note_files(directory))
        manifest.write(directory)
    return Exported(manifest, choice)


def _describe(model: TrainedModel, name: str, tables: TableVariants) -> Manifest:
    """The manifest without dense model, metrics and files."""
    config, collection = model.config, model.learner.collection
    names, lengths = config.table_names, config.table_bag_lengths
    ends = np.cumsum(lengths).tolist()
    columns = {
        name: (end - length, end) for name, length, end in zip(names, lengths, ends, strict=True)
    }
    features = zip(names, config.table_rows, lengths, strict=True)
    return Manifest(
        name=name,
        step=int(model.metadata["step"]),
        made_by=made_by(),
        data=model.data,
        dense_features=config.dense_features,
        features=tuple(FeatureNote(*feature) for feature in features),
        labels=config.labels,
        shift=model.shift,
        tables=tables.exported,
        lookups=tuple(
            note_lookup(lookup, columns[lookup.feature]) for lookup in collection.lookups
        ),
        layers=(),
        programs=(),
        files={},
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
    (directory / "layers").mkdir()
    (directory / "programs").mkdir()
    layers = []
    for name, array in arrays.items():
        note = LayerNote(name, array.shape, str(array.dtype), f"layers/{file_name(name)}.npy")
        write_layer(directory / note.file, array)
        layers.append(note)
    programs, shapes = [], manifest.vector_shapes
    width = sum(map(math.prod, shapes.values()))

    def logits(layers: Any, dense: Any, vectors: Any) -> Any:
        return function(layers, dense, split_vectors(shapes, vectors))

    made = export_programs(logits, arrays, manifest.dense_features, width)
    for size, content in made.items():
        note = ProgramNote(size, f"programs/{size or 'any'}.jax_export")
        (directory / note.file).write_bytes(content)
        programs.append(note)
    return dataclasses.replace(manifest, layers=tuple(layers), programs=tuple(programs))


def copy_vocabularies(vocabularies: Path, copy: Path) -> None:
    """Copies what maps raw values to ids to a new directory."""
    copy.mkdir()
    shutil.copytree(vocabularies / VOCABULARIES, copy / VOCABULARIES)
    shutil.copy2(vocabularies / METADATA, copy / METADATA)


@dataclasses.dataclass(frozen=True)
class _Measure:
    """Metrics of an artifact some of whose tables are quantized."""

    artifact: Artifact
    tables: TableVariants
    model: TrainedModel
    data: Dataset

    def auc(self, quantized: Collection[str]) -> float:
        """The AUC of the main label on the validation split.

        Raises:
            UserError: the split has labels of one kind alone.
        """
        logits = self._logits("validation", quantized)
        found = float(self._metrics("validation", logits)["auc"])
        if math.isnan(found):
            raise UserError(
                "max_auc_loss: expected validation examples of both labels, got one kind alone"
            )
        return found

    def summary(
        self, quantized: Collection[str]
    ) -> tuple[dict[str, dict[str, dict[str, float | None]]], BaselineNote | None]:
        """The metrics of each split that has examples, of the trained and the exported model.

        With what the last of them is like, as the exported model predicts it.
        """
        found, baseline = {}, None
        for split in _MEASURED:
            if len(self.data.splits[split]):
                logits = self._logits(split, quantized)
                exported = trained = self._metrics(split, logits)
                baseline = self._baseline(split, logits)
                if quantized:
                    trained = self._metrics(split, self._logits(split, ()))
                found[split] = {"trained": _plain(trained), "exported": _plain(exported)}
        return found, baseline

    def _logits(self, split: str, quantized: Collection[str]) -> Float32[np.ndarray, "N *_"]:
        notes = self.tables.notes(quantized)
        lookups = map_lookups(self.artifact.directory, notes, self.artifact.manifest.lookups)
        scorer = ArtifactScorer(dataclasses.replace(self.artifact, lookups=lookups))
        return np.concatenate([*scorer.logits(self.data.splits[split], _BATCH)])

    def _metrics(self, split: str, logits: Float32[np.ndarray, "N *_"]) -> dict[str, float | int]:
        # Its own metrics may be functions that would be imported.
        measures = measures_of(dataclasses.replace(self.model.config, metrics=()), self.data)
        kept = self.data.kept_negatives.get(split, 1.0)
        return measures(logits, self.data.splits[split], kept)

    def _baseline(self, split: str, logits: Float32[np.ndarray, "N *_"]) -> BaselineNote | None:
        if self.data.kept_negatives.get(split, 1.0) != 1:  # requests have the others, too
            return None
        labels = inputs_of(self.artifact.manifest).outputs
        vocabularies = self.model.vocabularies
        metadata = Metadata.read(vocabularies) if vocabularies else None
        probabilities = sigmoid(logits, self.model.shift)
        return baseline_of(split, self.data.splits[split], probabilities, labels, metadata)


def _plain(metrics: dict[str, float | int]) -> dict[str, float | None]:
    """Metrics as JSON has them, without NaN."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}
