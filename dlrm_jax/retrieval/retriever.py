"""The best items of users, by an artifact of two towers: rows of the log in, items out."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float32, Int32

from dlrm_jax.artifact.artifact import Artifact
from dlrm_jax.artifact.files import as_damage
from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.artifact.retrieval_note import RetrievalNote
from dlrm_jax.data.arrays import Examples
from dlrm_jax.data.preprocessing.serving import LogEncoder
from dlrm_jax.errors import UserError
from dlrm_jax.files import as_path
from dlrm_jax.inference.artifact_scorer import kept_by
from dlrm_jax.inference.rows import NAME, as_frame
from dlrm_jax.retrieval.index.index_files import read_index, read_items
from dlrm_jax.retrieval.index.item_index import Filters, Found, ItemIndex

_BATCH = 8192  # users whose vectors are made at a time


class Retriever:
    """What finds items: the tower of the user, and the index of the items.

    Args:
        artifact: artifact of two towers.
        index: index of the items.
    """

    def __init__(self, artifact: Artifact, index: ItemIndex):
        self.artifact, self.index = artifact, index

    def __repr__(self) -> str:
        """One line."""
        note = self.note
        cells = f" in {note.cells:,} cells" if note.cells > 1 else ""
        return f"Retriever({self.artifact}, {note.items:,} items{cells})"

    @classmethod
    def load(cls, directory: Path | str) -> Retriever:
        """Maps tables and items, and reads the tower; see `Artifact.load`.

        Args:
            directory: artifact that ``python -m dlrm_jax export`` made of a run of two towers.

        Raises:
            UserError: there is no artifact, or it is one of a click model or of a later version.
            DamagedArtifactError: a file is missing or isn't as it was written.
        """
        directory = as_path("directory", directory)
        artifact = Artifact.load(directory)
        if artifact.manifest.retrieval is None:
            raise UserError(
                f"expected an artifact of two towers, but {directory} is one of a click model; "
                f"load it by dlrm_jax.inference.predictor.Predictor"
            )
        with as_damage(directory):
            return cls(artifact, read_index(directory, artifact.manifest))

    @property
    def note(self) -> RetrievalNote:
        """The description of the index."""
        assert self.artifact.manifest.retrieval is not None
        return self.artifact.manifest.retrieval

    def search(
        self, rows: Any, k: int = 10, filters: Filters = None, probes: int | None = None
    ) -> Found:
        """The k best items of each user; `items` has their values.

        Args:
            rows: rows with the columns of the user: a list of dicts or a frame, see
                `Predictor.predict`; or examples with the ids of the user's columns alone.
            k: number of items.
            filters: attributes that items must have, ``{"language": "en", "topic": ["a", "b"]}``,
                of all rows; or a list with those of each row, or None.
            probes: cells of which items are read; None for the number of the export.

        Raises:
            UserError: a column is missing or malformed, an attribute isn't there, or k isn't
                positive; the message names it.
        """
        return self.index.search(self.vectors(rows), k, filters, probes)

    def vectors(self, rows: Any) -> Float32[np.ndarray, "n d"]:
        """The vectors of users; see `search`."""
        dense, ids = self._features(rows)
        parts = [np.zeros((0, self.note.dim), np.float32)]
        for first in range(0, len(ids), _BATCH):
            own = slice(first, first + _BATCH)
            made = self.artifact.logits(dense[own], ids[own])
            parts.append(made.reshape(-1, self.note.dim))
        return np.concatenate(parts)

    @functools.cached_property
    def items(self) -> pl.DataFrame:
        """The values of the items; a row each, by number.

        Raises:
            DamagedArtifactError: the file can't be read, or has other items than the index.
        """
        return read_items(self.artifact.directory, self.artifact.manifest)

    @functools.cached_property
    def encoder(self) -> LogEncoder:
        """What maps raw rows to ids; its vocabularies are read once.

        Raises:
            UserError: the artifact has none, or they can't be read.
        """
        vocabularies = kept_by(self.artifact.directory, self.artifact.manifest)
        if not vocabularies:
            raise UserError(
                "raw rows can't be mapped to ids: the towers were trained on data without "
                "vocabularies; give Examples"
            )
        return LogEncoder(vocabularies, self.artifact.manifest.data)

    def _features(self, rows: Any) -> tuple[Float32[np.ndarray, "n D"], Int32[np.ndarray, "n C"]]:
        """The dense features and the ids of users."""
        manifest = self.artifact.manifest
        if isinstance(rows, Examples):
            dense, ids = np.asarray(rows.dense), np.asarray(rows.ids)
            expected = len(rows), manifest.dense_features
            if dense.shape != expected:
                raise UserError(f"rows: expected dense of shape {expected}, got {dense.shape}")
            width, names = sum(x.max_ids for x in manifest.features), _names(manifest)
            if ids.shape[1] != width:
                raise UserError(
                    f"rows: expected ids of shape [{len(ids)}, {width}], those of the user's "
                    f"columns {', '.join(names)}, got shape {[*ids.shape]}"
                )
            return np.asarray(dense, np.float32), ids
        names, encoder = _names(manifest), self.encoder
        own = [*self.note.dense, *names]
        frame = as_frame(rows, own, encoder.options.schema.numbers)
        # What the tower doesn't read needs no values.
        others = [pl.lit(None).alias(name) for name in encoder.columns if name not in own]
        examples = encoder.rows(frame.with_columns(others), NAME)
        schema, lengths = encoder.options.schema, encoder.metadata.bag_lengths
        ends = np.cumsum(lengths)
        places = [
            np.arange(ends[i] - lengths[i], ends[i])
            for i in (encoder.metadata.columns.index(name) for name in names)
        ]
        columns = np.concatenate([np.empty(0, np.int64), *places])
        dense = [schema.dense.index(name) for name in self.note.dense]
        return np.asarray(examples.dense)[:, dense], np.asarray(examples.ids)[:, columns]


def _names(manifest: Manifest) -> list[str]:
    """The user's categorical columns, in the order of their ids."""
    return [feature.name for feature in manifest.features]
