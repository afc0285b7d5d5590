"""The model that `dlrm_jax predict` is given: a checkpoint or an artifact, and its data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dlrm_jax.artifact.manifest import Manifest, is_artifact
from dlrm_jax.artifact.retrieval_note import check_click_model
from dlrm_jax.config import Config
from dlrm_jax.data.metadata import Metadata, of_data
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.data.preprocessing.serving import serving_options
from dlrm_jax.errors import UserError
from dlrm_jax.inference.artifact_scorer import inputs_of, kept_by
from dlrm_jax.inference.checkpoint_scorer import inputs_of_config
from dlrm_jax.inference.model_checks import check_model
from dlrm_jax.inference.noted_ids import schema_of_stream
from dlrm_jax.inference.runs import find_checkpoint
from dlrm_jax.inference.scorer import Inputs
from dlrm_jax.inference.vocabularies import check_same_data, no_vocabularies
from dlrm_jax.saved_config import trained_config
from dlrm_jax.training.kept_data import find_kept
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.rows_by_id import STREAM
from dlrm_jax.training.sampling import noted_correction, noted_shift


class Trained(NamedTuple):
    """What a checkpoint says of itself."""

    metadata: Mapping[str, Any]
    config: Config


class PredictingModel(NamedTuple):
    """A model, before its arrays are read.

    Attributes:
        path: directory of the checkpoint or of the artifact.
        inputs: features and labels that the model expects of examples.
        fingerprint: fingerprint of the data of training, whose ids the tables have.
        shift: number that probabilities add to the logits.
        correction: change of predictions, in words; None for none.
        metrics: metrics of training besides the usual ones.
        vocabularies: directory that maps raw values to ids; None if there is none.
        schema: meaning of the columns of a stream, whose values need none; None for others.
        trained: metadata and config of the checkpoint; None for an artifact.
    """

    path: Path
    inputs: Inputs
    fingerprint: str
    shift: float
    correction: str | None
    metrics: tuple[str, ...]
    vocabularies: Path | None
    schema: Schema | None
    trained: Trained | None

    @property
    def takes_raw_rows(self) -> bool:
        """Whether raw rows can be mapped to ids."""
        return self.vocabularies is not None or self.schema is not None

    @property
    def columns_of_logs(self) -> tuple[Options, tuple[str, ...]]:
        """The options of its raw logs, and the columns that may group their rows.

        Raises:
            UserError: the description of the vocabularies can't be read.
        """
        if self.schema:
            plain = dataclasses.replace(self.schema, weight=None, timestamp=None, groups=())
            return Options(plain), self.schema.groups
        assert self.vocabularies
        metadata = Metadata.read(self.vocabularies)
        return serving_options(metadata), tuple(metadata.groups)


def find_model(path: Path, preprocessing: Path | None) -> PredictingModel:
    """Reads the description of a checkpoint, of the best one of a run, or of an artifact.

    Args:
        path: directory of one of them.
        preprocessing: directory of vocabularies that the user gives; None for those kept.

    Raises:
        UserError: it is none of them, it is damaged, or the vocabularies are of other data.
    """
    model = _of_artifact(path) if is_artifact(path) else _of_checkpoint(find_checkpoint(path))
    model = model._replace(vocabularies=preprocessing or model.vocabularies)
    if model.vocabularies:
        check_same_data(model.vocabularies, model.path, model.fingerprint)
    return model


def _of_artifact(path: Path) -> PredictingModel:
    manifest = Manifest.read(path)
    check_click_model(path, manifest.retrieval)
    shift, correction = manifest.shift, None
    if shift:
        correction = (
            f"{math.exp(shift):.4g} of the negative training examples were kept; predictions and "
            f"metrics are corrected to all of them, AUC as it is"
        )
    inputs, kept = inputs_of(manifest), kept_by(path, manifest)
    schema = manifest.id_rows.own_schema() if manifest.id_rows else None
    about = inputs, manifest.data, shift, correction
    return PredictingModel(path, *about, (), kept, schema, None)


def _of_checkpoint(path: Path) -> PredictingModel:
    metadata = read_metadata(path)
    config = trained_config(path, metadata)
    fields = schema_of_stream(path, metadata)
    return PredictingModel(
        path,
        inputs_of_config(config, fields is not None),
        of_data(metadata["identity"]["data"]),
        noted_shift(config, metadata),
        noted_correction(config, metadata),
        config.metrics,
        find_kept(path),
        None if fields is None else Schema.from_fields(fields),
        Trained(metadata, config),
    )


def without_vocabularies(model: PredictingModel) -> str:
    """Why a model has no vocabularies, and what the user can do; see `no_vocabularies`."""
    if model.trained and STREAM in model.trained.metadata:
        return (
            f"{model.path} was trained on a stream by an earlier version, which didn't keep its "
            f"schema. Run the same train command again, which adds it"
        )
    return no_vocabularies(model.path, model.fingerprint)


def check_class(model: PredictingModel, named: str | None) -> None:
    """Checks that the user names the code that a checkpoint would import; see `check_model`."""
    if model.trained:
        check_model(model.path, model.trained.config, named)
    elif named:
        raise UserError(f"--model: an artifact needs no class, got {named!r}; leave it out")


def table_names(model: PredictingModel, asked: list[str]) -> list[str]:
    """The names in a checkpoint of the tables that ``--tables`` asks for; one is meant once.

    Models of earlier versions call them C1, C2, …, and the columns of their data mean the same.

    Raises:
        UserError: there is no such table, it is given twice, or the model is an artifact.
    """
    if not asked:
        return []
    if not model.trained:
        raise UserError(
            f"--tables: expected a run or a checkpoint, got the artifact {model.path}, whose "
            f"tables are files already: its manifest.json names them"
        )
    config = model.trained.config
    tables = config.table_names
    columns = tables  # as two towers have them, which read some columns by name
    if model.vocabularies and "retrieval" not in model.trained.metadata["identity"]:
        columns = Metadata.read(model.vocabularies).columns
    found = []
    for name in asked:
        named = zip(tables, columns, strict=True)
        meant = [config.table_of[x] for x, column in named if name in (x, column)]
        if len(meant) != 1:
            known = ", ".join(dict.fromkeys([*tables, *columns]))
            both = f"{name!r} is the name of one and the column of another of {', '.join(meant)}"
            none = f"no table or column is named {name!r}; there are {known}"
            raise UserError(f"--tables: {both if meant else none}")
        if meant[0] in found:
            raise UserError(f"--tables: {name!r} is table {meant[0]}, which is given twice")
        found += meant
    return found
