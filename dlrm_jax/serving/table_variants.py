"""The tables of an artifact while it is written: in its row format, and as they were trained."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Collection
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from dlrm_jax.artifact.artifact import Artifact
from dlrm_jax.artifact.notes import TableNote
from dlrm_jax.artifact.row_formats import RowFormat, row_bytes
from dlrm_jax.artifact.tables import map_lookups, write_rows
from dlrm_jax.embedding import Table
from dlrm_jax.feature_names import file_name
from dlrm_jax.serving.trained_model import TrainedModel

_TABLES, _TRAINED = "tables", "trained"


@dataclasses.dataclass(frozen=True)
class TableVariants:
    """Tables in a row format, and as they were trained where that is another one.

    Rows that integers would make longer, such as a single weight, stay as they were trained.

    Attributes:
        directory: directory of the artifact.
        exported: tables in the row format.
        trained: tables as they were trained.
    """

    directory: Path
    exported: tuple[TableNote, ...]
    trained: tuple[TableNote, ...]

    @classmethod
    def write(
        cls, model: TrainedModel, directory: Path, row_format: RowFormat, both: bool
    ) -> TableVariants:
        """Writes all tables; one of them is in memory at a time.

        Args:
            model: trained model.
            directory: directory of the artifact.
            row_format: row format.
            both: whether rows are also written as they were trained, to compare.
        """
        exported, trained = [], []
        (directory / _TABLES).mkdir()
        (directory / _TRAINED).mkdir()
        for table, rows in model.tables():
            own, note = _trained_format(rows.dtype), _note(table, rows.dtype, row_format)
            write_rows(directory / note.file, rows, note.row_format)
            exported.append(note)
            if own != note.row_format:
                file = f"{_TRAINED}/{Path(note.file).name}"
                note = dataclasses.replace(note, row_format=own, file=file)
                if both:
                    write_rows(directory / note.file, rows, own)
            trained.append(note)
        return cls(directory, tuple(exported), tuple(trained))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the tables that the row format changes."""
        pairs = zip(self.exported, self.trained, strict=True)
        return tuple(own.name for own, before in pairs if own != before)

    def notes(self, quantized: Collection[str]) -> tuple[TableNote, ...]:
        """The tables of which some are in the row format, and the others as they were trained."""
        pairs = zip(self.exported, self.trained, strict=True)
        return tuple(own if own.name in quantized else before for own, before in pairs)

    def read_by(self, artifact: Artifact, quantized: Collection[str]) -> Artifact:
        """An artifact of which some tables are in the row format, and the others as trained."""
        notes, lookups = self.notes(quantized), artifact.manifest.lookups
        return dataclasses.replace(artifact, lookups=map_lookups(self.directory, notes, lookups))

    def keep(self, quantized: Collection[str]) -> tuple[TableNote, ...]:
        """Deletes all rows but those of `notes`, which get the names that they have for good."""
        for note in self.notes(quantized):
            if note.file.startswith(f"{_TRAINED}/"):
                (self.directory / note.file).replace(self.directory / _kept(note).file)
        shutil.rmtree(self.directory / _TRAINED)
        return tuple(map(_kept, self.notes(quantized)))


def notes_of(model: TrainedModel, row_format: RowFormat) -> tuple[TableNote, ...]:
    """The tables of a model as they are exported in a row format."""
    tables = model.learner.collection.tables.values()
    return tuple(_note(table, np.dtype(table.dtype), row_format) for table in tables)


def _note(table: Table, dtype: np.dtype, row_format: RowFormat) -> TableNote:
    """The note of a table that was trained in a dtype, in a row format unless that is longer."""
    own = _trained_format(dtype)
    stored = own if _is_wasted(row_format, own, table.dim) else row_format
    file = f"{_TABLES}/{file_name(table.name)}.rows"
    return TableNote(table.name, table.rows, table.dim, stored, file)


def _trained_format(dtype: np.dtype) -> RowFormat:
    return "bfloat16" if dtype == jnp.bfloat16 else "float32"


def _kept(note: TableNote) -> TableNote:
    return dataclasses.replace(note, file=f"{_TABLES}/{Path(note.file).name}")


def _is_wasted(row_format: RowFormat, own: RowFormat, dim: int) -> bool:
    """Whether rows get no shorter as integers: their scale and bias take four bytes."""
    is_integer = row_format in ("int8", "int4")
    return is_integer and row_bytes(row_format, dim) >= row_bytes(own, dim)
