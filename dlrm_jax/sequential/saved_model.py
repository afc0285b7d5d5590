"""A trained model of sequences as a directory, which holds all that recommending needs."""

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
from dlrm_jax.data.formats.npy import write_npy
from dlrm_jax.errors import DamagedArtifactError, UserError
from dlrm_jax.files import as_path, creating
from dlrm_jax.sequential.model import NextItem
from dlrm_jax.sequential.model_files import (
    check_files,
    layers_of,
    load_layers,
    read_noted,
    write_arrays,
)
from dlrm_jax.sequential.recommender import Recommender
from dlrm_jax.sequential.run import of_earlier
from dlrm_jax.sequential.settings import SequentialSettings
from dlrm_jax.serving.export import made_by

KIND, FORMAT = "sequential", 1
"""What the directory is, and the number of its layout and of the meaning of its numbers."""

TABLE, ITEMS = "items.npy", "items.parquet"
"""The files of the items' vectors, and of their values."""

Metrics = Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class _Manifest:
    """The description of a saved model.

    Attributes:
        kind: `KIND`.
        format: `FORMAT`.
        name: name of the model.
        step: number of training steps.
        made_by: versions of the libraries that wrote it, by name.
        settings: settings of the run, of which later versions may have more.
        layers: file of each parameter, by its path in the model.
        metrics: metrics of the trained model by split.
        files: size and checksum of every file.
    """

    kind: str
    format: int
    name: str
    step: int
    made_by: dict[str, str]
    settings: dict[str, Any]
    layers: dict[str, str]
    metrics: dict[str, dict[str, float]]
    files: dict[str, FileNote]


def write_model(
    output: Path, recommender: Recommender, name: str, step: int, metrics: Metrics | None = None
) -> None:
    """Writes a model, completely or not at all.

    Args:
        output: directory to make.
        recommender: recommender of the model.
        name: name of the model.
        step: number of training steps.
        metrics: metrics of the trained model by split; None for none.

    Raises:
        UserError: the directory exists, or can't be written.
    """
    with creating(output) as directory:
        directory.mkdir()
        write_npy(directory / TABLE, np.asarray(recommender.table))
        with parquet.writing(directory / ITEMS):
            pl.DataFrame({"item": recommender.items.values}).write_parquet(directory / ITEMS)
        layers = write_arrays(directory, "layer", layers_of(recommender.model))
        manifest = _Manifest(
            KIND,
            FORMAT,
            name,
            step,
            made_by(),
            dataclasses.asdict(recommender.settings),
            layers,
            {split: dict(own) for split, own in (metrics or {}).items()},
            note_files(directory),
        )
        text = signed_text(dataclasses.asdict(manifest))
        (directory / MANIFEST).write_text(text, encoding="utf-8")


def read_model(directory: Path | str) -> Recommender:
    """Reads a model, and checks that its files are as they were written.

    Args:
        directory: directory that `write_model` made.

    Raises:
        UserError: there is none, or a later version wrote it.
        DamagedArtifactError: a file isn't as it was written.
    """
    directory = as_path("directory", directory)
    manifest = read_noted(directory, KIND, FORMAT, _Manifest)
    check_files(directory, manifest.files, {TABLE, ITEMS, *manifest.layers.values()})
    known: dict[str, Any] = {
        name: tuple(x) if isinstance(x, list) else x
        for name, x in of_earlier(manifest.settings).items()
    }
    try:
        settings = SequentialSettings(**known)
    except TypeError as error:  # a name that this version hasn't
        raise UserError(f"{directory}: a later version wrote its settings: {error}") from error
    model = NextItem(settings, rngs=nnx.Rngs(0))
    load_layers(model, directory, manifest.layers)
    model.eval()
    values = _values(directory)
    table = read_array(directory, TABLE, np.float32, (len(values), settings.width))
    return Recommender(settings, model, jnp.asarray(table), values)


def _values(directory: Path) -> pl.Series:
    try:
        return pl.read_parquet(directory / ITEMS)["item"]
    except pl.exceptions.PolarsError as error:  # its bytes are as written, by someone else
        raise DamagedArtifactError(str(directory), ITEMS, str(error)) from error
