"""The arrays of an artifact, as a warm start reads those of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlrm_jax.artifact.artifact import read_layer
from dlrm_jax.artifact.files import check_content, check_present
from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.artifact.row_formats import decode
from dlrm_jax.artifact.tables import map_rows
from dlrm_jax.errors import UserError

_TRAINED = ("float32", "bfloat16")
"""Row formats that a table may have been trained in."""


class ArtifactArrays:
    """The tables and layers of an artifact by name.

    Args:
        source: directory of the artifact.

    Attributes:
        metadata: labels, data and tables, as a checkpoint's metadata has them.

    Raises:
        UserError: it is damaged, or a later version wrote it.
    """

    def __init__(self, source: Path):
        manifest = self._manifest = Manifest.read(source)
        check_present(source, manifest.files)
        self._source = source
        self._tables = {note.name: note for note in manifest.tables}
        noted = manifest.dense_layers
        self._precision = noted.precision if noted else "float32"
        self._layers = {note.name: note for note in manifest.layers}
        self.metadata: Mapping[str, Any] = {
            "format": 3,
            "config": {"labels": manifest.labels},
            "identity": {"data": manifest.data},
            "arrays": {f"{x.name}/table": {"shape": (x.rows, x.dim)} for x in manifest.tables},
        }

    def table(self, name: str) -> np.ndarray:
        """The rows of a table, float32 [rows, dim].

        Raises:
            UserError: there is no such table, or its rows are rounded to integers.
        """
        note = self._tables.get(name)
        if note is None:
            raise self._unknown("table", name, self._tables)
        if note.row_format not in _TRAINED:
            raise UserError(
                f"warm start: table {name} of {self._source} has rows in {note.row_format}, from "
                f"which training would start worse; give the run, or export it with "
                f"--tables=float32"
            )
        check_content(self._source, note.file, self._manifest.files[note.file])
        return decode(map_rows(self._source, note).rows, note.row_format, note.dim)

    def layer(self, name: str) -> np.ndarray:
        """An array of the dense model.

        Raises:
            UserError: there is none of this name, or the layers are rounded to integers.
        """
        note = self._layers.get(name)
        if note is None:
            raise self._unknown("layer", name, self._layers)
        if self._precision == "int8":
            raise UserError(
                f"warm start: the layers of {self._source} are in int8, from which training would "
                f"start worse; give the run, or export it with --layers=float32"
            )
        check_content(self._source, note.file, self._manifest.files[note.file])
        return read_layer(self._source, note)

    def _unknown(self, kind: str, name: str, there: Mapping[str, Any]) -> UserError:
        return UserError(
            f"warm start: {self._source} has no {kind} {name!r}; there are {', '.join(there)}"
        )
