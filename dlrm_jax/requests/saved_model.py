"""A trained model of requests as a directory, which holds all that scoring needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import polars as pl
from flax import nnx
from jaxtyping import Float32

from dlrm_jax.artifact.files import check_content, check_present, note_files, read_array
from dlrm_jax.artifact.manifest import MANIFEST
from dlrm_jax.artifact.notes import FileNote
from dlrm_jax.artifact.signed_text import is_signed, signed_text
from dlrm_jax.data.formats import parquet
from dlrm_jax.data.formats.npy import write_npy
from dlrm_jax.data.preprocessing import vocabulary
from dlrm_jax.errors import DamagedArtifactError, UserError
from dlrm_jax.files import creating
from dlrm_jax.requests.columns import Columns
from dlrm_jax.requests.model import RequestRanker
from dlrm_jax.requests.scorer import Encoded, RequestScorer
from dlrm_jax.requests.settings import RequestSettings

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


class RequestModel:
    """A saved model, which takes values as the log has them.

    Args:
        scorer: scorer of rows.
        vocabularies: vocabulary of each table; none where values are rows already.
    """

    def __init__(self, scorer: RequestScorer, vocabularies: Mapping[str, pl.DataFrame]):
        self.scorer, self.vocabularies = scorer, dict(vocabularies)

    def encode(
        self, history: Mapping[str, Any], times: Any = None, time: int | None = None
    ) -> Encoded:
        """Encodes a history; see `RequestScorer.encode`.

        Args:
            history: values of each column, the oldest first.
            times: time of each token in seconds, where the model has times.
            time: time of the request in seconds.

        Raises:
            UserError: see `RequestScorer.encode`, or values have another type than the log's.
        """
        return self.scorer.encode(self._ids(self.scorer.columns.history, history), times, time)

    def score(
        self,
        encoded: Encoded,
        candidates: Mapping[str, Any],
        context: Mapping[str, Any],
        time: int | None = None,
    ) -> Float32[np.ndarray, " m"]:
        """The logits of candidates; see `RequestScorer.score`.

        Args:
            encoded: result of `encode`.
            candidates: values of each column.
            context: value of each column.
            time: time in seconds, where it isn't that of `encode` any more.

        Raises:
            UserError: see `RequestScorer.score`, or values have another type than the log's.
        """
        columns = self.scorer.columns
        single = self._ids(columns.context, {name: [value] for name, value in context.items()})
        own = {name: int(ids[0]) for name, ids in single.items()}
        return self.scorer.score(encoded, self._ids(columns.candidates, candidates), own, time)

    def _ids(self, tables: Mapping[str, str], values: Mapping[str, Any]) -> dict[str, Any]:
        """The rows of values; columns that the model hasn't are for the scorer to refuse."""
        return {name: self._rows(name, tables.get(name), own) for name, own in values.items()}

    def _rows(self, name: str, table: str | None, values: Any) -> Any:
        if table not in self.vocabularies or not len(values):
            return np.asarray(values)
        try:
            series = pl.Series(name, values)
        except TypeError as error:
            raise UserError(f"{name}: expected values of one type, got {values!r}") from error
        return vocabulary.encode(series, self.vocabularies[table], 1)[:, 0]


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
        tables = _write(directory, "table", scorer.tables)
        layers = _write(directory, "layer", _layers(scorer.model))
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


def read_model(directory: Path) -> RequestModel:
    """Reads a model, and checks that its files are as they were written.

    Args:
        directory: directory that `write_model` made.

    Raises:
        UserError: there is none, or a later version wrote it.
        DamagedArtifactError: a file isn't as it was written.
    """
    manifest = _read_manifest(directory)
    check_present(directory, manifest.files)
    for name, note in manifest.files.items():
        check_content(directory, name, note)
    known: dict[str, Any] = {
        name: tuple(x) if isinstance(x, list) else x for name, x in manifest.settings.items()
    }
    try:
        settings = RequestSettings(**known)
    except TypeError as error:  # a name that this version hasn't
        raise UserError(f"{directory}: a later version wrote its settings: {error}") from error
    model = RequestRanker(manifest.columns, settings, rngs=nnx.Rngs(0))
    wanted = {name: x.shape for name, x in _layers(model).items()}
    if wanted.keys() != manifest.layers.keys() or set(manifest.columns.tables) != {
        *manifest.tables
    }:
        raise DamagedArtifactError(
            str(directory), MANIFEST, "its tables or layers aren't those of its settings"
        )
    layers = {
        name: read_array(directory, manifest.layers[name], np.float32, shape)
        for name, shape in wanted.items()
    }
    tables = {
        name: jnp.asarray(read_array(directory, file, np.float32, (None, settings.width)))
        for name, file in manifest.tables.items()
    }
    params = nnx.state(model, nnx.Param)
    own = jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(layers[jax.tree_util.keystr(path)]), params
    )
    nnx.update(model, own)
    model.eval()
    vocabularies = {
        table: vocabulary.read_whole(directory / file)
        for table, file in manifest.vocabularies.items()
    }
    return RequestModel(RequestScorer(manifest.columns, settings, model, tables), vocabularies)


def _layers(model: RequestRanker) -> dict[str, np.ndarray]:
    """The parameters of a model by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(model, nnx.Param))
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def _write(directory: Path, kind: str, arrays: Mapping[str, Any]) -> dict[str, str]:
    """Writes arrays, and returns the file of each."""
    files = {name: f"{kind}_{number}.npy" for number, name in enumerate(arrays)}
    for name, array in arrays.items():
        write_npy(directory / files[name], np.asarray(array))
    return files


def _read_manifest(directory: Path) -> _Manifest:
    path = directory / MANIFEST
    try:
        content = path.read_bytes()
        found = msgspec.json.decode(content, type=_Manifest)
        is_whole = is_signed(content.decode())
    except OSError as error:
        raise UserError(f"{directory} is no saved model: cannot read {path}: {error}") from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise DamagedArtifactError(str(directory), MANIFEST, str(error)) from error
    if found.kind != KIND or found.format > FORMAT:
        raise UserError(
            f"{path}: expected a model of requests of format {FORMAT}, got one of {found.kind!r} "
            f"of format {found.format}; use the version that wrote it"
        )
    if not is_whole:
        raise DamagedArtifactError(
            str(directory), MANIFEST, "its bytes aren't those that were written"
        )
    for files in (found.tables, found.layers, found.vocabularies):
        if not set(files.values()) <= found.files.keys():
            raise DamagedArtifactError(str(directory), MANIFEST, "it names files that it lacks")
    return found
