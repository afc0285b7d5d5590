"""A trained model of requests as a directory, which holds all that scoring needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import polars as pl
from flax import nnx

from dlrm_jax.artifact.files import note_files, read_array
from dlrm_jax.artifact.manifest import MANIFEST
from dlrm_jax.artifact.notes import FileNote
from dlrm_jax.artifact.signed_text import signed_text
from dlrm_jax.data.formats import parquet
from dlrm_jax.errors import DamagedArtifactError, UserError
from dlrm_jax.files import creating
from dlrm_jax.requests.columns import Columns
from dlrm_jax.requests.model import RequestRanker
from dlrm_jax.requests.request_model import RequestModel
from dlrm_jax.requests.scorer import RequestScorer
from dlrm_jax.requests.scoring_program import CANDIDATES, Sizes
from dlrm_jax.requests.settings import RequestSettings
from dlrm_jax.requests.value_ids import ValueIds
from dlrm_jax.sequential.model_files import (
    check_files,
    layers_of,
    load_layers,
    read_noted,
    write_arrays,
)

KIND, FORMAT = "requests", 1
"""What the directory is, and the number of its layout and of the meaning of its numbers."""


@dataclasses.dataclass(frozen=True)
class _Manifest:
    """The description of a saved model.

    Attributes:
        kind: `KIND`.
        format: `FORMAT`.
        columns: columns of the log.
        settings: settings of the run, of which later versions may have more.
        tables: file of each table.
        layers: file of each parameter, by its path in the model.
        vocabularies: file of the vocabulary of each table; none where values are rows.
        files: size and checksum of every file.
    """

    kind: str
    format: int
    columns: Columns
    settings: dict[str, Any]
    tables: dict[str, str]
    layers: dict[str, str]
    vocabularies: dict[str, str]
    files: dict[str, FileNote]


def write_model(
    output: Path, scorer: RequestScorer, vocabularies: Mapping[str, pl.DataFrame] | None = None
) -> None:
    """Writes a model, completely or not at all.

    Args:
        output: directory to make.
        scorer: scorer of the model.
        vocabularies: vocabulary of each table; None where values are rows already.

    Raises:
        UserError: the directory exists, or can't be written.
    """
    with creating(output) as directory:
        directory.mkdir()
        tables = write_arrays(directory, "table", scorer.tables)
        layers = write_arrays(directory, "layer", layers_of(scorer.model))
        known = {}
        for number, (table, frame) in enumerate((vocabularies or {}).items()):
            known[table] = f"vocabulary_{number}.parquet"
            with parquet.writing(directory / known[table]):
                frame.write_parquet(directory / known[table])
        manifest = _Manifest(
            KIND,
            FORMAT,
            scorer.columns,
            dataclasses.asdict(scorer.settings),
            tables,
            layers,
            known,
            note_files(directory),
        )
        text = signed_text(dataclasses.asdict(manifest))
        (directory / MANIFEST).write_text(text, encoding="utf-8")


def read_model(
    directory: Path | str, batch_tokens: int = 0, batch_candidates: int = CANDIDATES
) -> RequestModel:
    """Reads a model, and checks that its files are as they were written.

    Args:
        directory: directory that `write_model` made.
        batch_tokens: most tokens of histories that are packed together; 0 for those of the longest.
        batch_candidates: most candidates of a call of the model.

    Raises:
        UserError: there is none, or a later version wrote it.
        DamagedArtifactError: a file isn't as it was written.
    """
    directory = Path(directory)
    manifest = read_noted(directory, KIND, FORMAT, _Manifest)
    named = (manifest.tables, manifest.layers, manifest.vocabularies)
    check_files(directory, manifest.files, {file for files in named for file in files.values()})
    known: dict[str, Any] = {
        name: tuple(x) if isinstance(x, list) else x for name, x in manifest.settings.items()
    }
    try:
        settings = RequestSettings(**known)
    except TypeError as error:  # a name that this version hasn't
        raise UserError(f"{directory}: a later version wrote its settings: {error}") from error
    model = RequestRanker(manifest.columns, settings, rngs=nnx.Rngs(0))
    load_layers(model, directory, manifest.layers)
    model.eval()
    if set(manifest.columns.tables) != set(manifest.tables):
        raise DamagedArtifactError(
            str(directory), MANIFEST, "its tables aren't those of its columns"
        )
    tables = {
        name: jnp.asarray(read_array(directory, file, np.float32, (None, settings.width)))
        for name, file in manifest.tables.items()
    }
    vocabularies = {
        table: ValueIds(directory / file) for table, file in manifest.vocabularies.items()
    }
    sizes = Sizes.of(settings.evaluated_length, batch_tokens, batch_candidates)
    scorer = RequestScorer(manifest.columns, settings, model, tables, sizes)
    return RequestModel(scorer, vocabularies)


def table_paths(directory: Path) -> list[Path]:
    """The files of a model's tables, which are mapped.

    Raises:
        UserError: there is no model.
        DamagedArtifactError: its manifest isn't as it was written.
    """
    found = read_noted(directory, KIND, FORMAT, _Manifest)
    return [directory / name for name in found.tables.values()]
