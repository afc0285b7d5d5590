"""The manifest of an artifact: what its files are, and how their numbers become predictions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from dlrm_jax.artifact.dense_note import DenseNote, noted_fields
from dlrm_jax.artifact.id_notes import IdsNote
from dlrm_jax.artifact.notes import (
    BaselineNote,
    Count,
    FeatureNote,
    FileNote,
    LayerNote,
    LongCount,
    LookupNote,
    ProgramNote,
    TableNote,
)
from dlrm_jax.artifact.retrieval_note import RetrievalNote
from dlrm_jax.artifact.signed_text import is_signed, signed_text
from dlrm_jax.errors import DamagedArtifactError, UserError

FORMAT = 2
"""Number of the format. It changes with the layout on disk and with the meaning of its numbers.

Format 2 has `Manifest.id_rows`: ids aren't rows. What has none is written as format 1.
"""

MANIFEST = "manifest.json"

_Metrics = dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The description of an artifact.

    Attributes:
        name: name of the model.
        step: number of training steps.
        made_by: versions of the libraries that wrote it, by name.
        data: fingerprint of the training data, which the ids are of.
        dense_features: number D of dense features.
        features: categorical features, in the order of the columns of ids.
        labels: names of the labels; none for one without a name.
        shift: number that probabilities add to the logits.
        tables: tables.
        lookups: lookups.
        layers: arrays of the dense model.
        programs: dense model, for one or several batch sizes.
        files: size and checksum of every file, by its name; the manifest isn't among them.
        metrics: metrics by split, of the trained model and of the exported one.
        baseline: split that the exported model predicted; None if there were no data, and of
            earlier versions.
        retrieval: index of items of two towers; None for a model that predicts rows.
        dense_layers: layers that native code may run in place of the program; None for other
            models than DLRM, and of earlier versions.
        id_rows: way by which ids become rows of tables; None if ids are rows.
    """

    name: str
    step: LongCount
    made_by: dict[str, str]
    data: str
    dense_features: Count
    features: tuple[FeatureNote, ...]
    labels: tuple[str, ...]
    shift: float
    tables: tuple[TableNote, ...]
    lookups: tuple[LookupNote, ...]
    layers: tuple[LayerNote, ...]
    programs: Annotated[tuple[ProgramNote, ...], msgspec.Meta(min_length=1)]
    files: dict[str, FileNote]
    metrics: dict[str, dict[Literal["trained", "exported"], _Metrics]] = dataclasses.field(
        default_factory=dict
    )
    baseline: BaselineNote | None = None
    retrieval: RetrievalNote | None = None
    dense_layers: DenseNote | None = None
    id_rows: IdsNote | None = None

    @property
    def outputs(self) -> int:
        """Numbers of an example that the program gives: logits of the labels, or a vector."""
        return self.retrieval.dim if self.retrieval else len(self.labels)

    @property
    def vector_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of an example's vectors by lookup, in the order in which they stand."""
        dims = {table.name: table.dim for table in self.tables}
        return {
            note.name: (note.columns[1] - note.columns[0], dims[note.table])
            if note.pooling == "none"
            else (dims[note.table],)
            for note in self.lookups
        }

    def write(self, directory: Path) -> None:
        """Writes ``manifest.json``, with its own checksum."""
        fields = dataclasses.asdict(self, dict_factory=noted_fields)
        if self.id_rows is None:
            del fields["id_rows"]
        text = signed_text({"format": self._format, **fields})
        (directory / MANIFEST).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Reads and checks the manifest of an artifact; other files aren't looked at.

        Raises:
            UserError: there is none, or a later version wrote it.
            DamagedArtifactError: it isn't as it was written, or its parts don't fit each other.
        """
        path = directory / MANIFEST
        try:
            if path.exists() and not path.is_file():  # a pipe would wait for ever
                raise OSError("expected a file, found none")
            content = path.read_bytes()
            text = content.decode()
            noted = msgspec.json.decode(content, type=_Format)
            number = noted.format
            if noted.kind:
                raise UserError(
                    f"{directory}: expected an artifact of rows or of two towers, got a model of "
                    f"{noted.kind}; a program reads it, see dlrm_jax.{noted.kind}.saved_model"
                )
            if number > FORMAT:
                raise UserError(
                    f"{path} has format {number}, this program reads {FORMAT}: a later version of "
                    f"it wrote the artifact; use that version"
                )
            if not is_signed(text):
                raise DamagedArtifactError(
                    str(directory), MANIFEST, "its bytes aren't those that were written"
                )
            found = msgspec.json.decode(content, type=cls)
            if number != found._format:
                raise DamagedArtifactError(str(directory), MANIFEST, f"it has format {number}")
            found._check()
        except OSError as error:
            raise UserError(f"{directory} is no artifact: cannot read {path}: {error}") from error
        except (msgspec.DecodeError, RecursionError, _InconsistentError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise DamagedArtifactError(str(directory), MANIFEST, str(error)) from error
        return found

    @property
    def _format(self) -> int:
        return 1 if self.id_rows is None else 2

    def _check(self) -> None:
        """Checks that the parts fit each other; it may come from someone else."""
        for kind, items in (
            ("feature", self.features),
            ("table", self.tables),
            ("lookup", self.lookups),
            ("layer", self.layers),
        ):
            names = [item.name for item in items]
            if repeated := sorted({x for x in names if names.count(x) > 1}):
                raise _InconsistentError(f"{kind} {repeated[0]!r} is there twice")
        starts: dict[str, tuple[int, int]] = {}
        first = 0
        for feature in self.features:
            starts[feature.name] = (first, first := first + feature.max_ids)
        tables = {table.name: table.rows for table in self.tables}
        rows = {feature.name: feature.rows for feature in self.features}
        if self.id_rows:
            self.id_rows.check(self.features, self.tables, self.lookups, self.files)
            rows |= self.id_rows.rows_of()
        for lookup in self.lookups:
            if lookup.table not in tables:
                raise _InconsistentError(f"lookup {lookup.name!r}: no table {lookup.table!r}")
            if starts.get(lookup.feature) != lookup.columns or len(lookup.id_map) > 1:
                raise _InconsistentError(
                    f"lookup {lookup.name!r}: columns {[*lookup.columns]} and id_map "
                    f"{lookup.id_map} don't fit feature {lookup.feature!r}"
                )
            needed, there = lookup.rows_read(rows[lookup.feature]), tables[lookup.table]
            if needed > there:
                raise _InconsistentError(
                    f"lookup {lookup.name!r}: ids of feature {lookup.feature!r} need {needed:,} "
                    f"rows, table {lookup.table!r} has {there:,}"
                )
        for item in (*self.tables, *self.layers, *self.programs):
            if item.file not in self.files:
                raise _InconsistentError(f"files: {item.file!r} isn't among them")
        if self.dense_layers:
            arrays = {x.name: (x.shape, x.dtype) for x in self.layers}
            self.dense_layers.check(self.dense_features, arrays, self.vector_shapes)
            if self.outputs > 1 or self.retrieval:
                raise _InconsistentError("dense_layers: expected a model of one label")
        if self.baseline:
            edges, bins = self.baseline.edges, {len(x) for x in self.baseline.scores.values()}
            if list(edges) != sorted({*edges}) or bins - {len(edges) + 1}:
                raise _InconsistentError("baseline: its bins aren't between ascending edges")


def is_artifact(directory: Path) -> bool:
    """Whether a directory has the manifest of an artifact."""
    return (directory / MANIFEST).is_file()


def kind_of(directory: Path) -> str:
    """What a model is: empty for rows or two towers, or if nothing can be read."""
    try:
        content = (directory / MANIFEST).read_bytes() if is_artifact(directory) else b""
        return msgspec.json.decode(content, type=_Format).kind
    except (OSError, msgspec.DecodeError, RecursionError):  # whoever reads it learns why
        return ""


class _InconsistentError(Exception):
    """Parts of a manifest don't fit each other."""


@dataclasses.dataclass(frozen=True)
class _Format:
    format: int
    kind: str = ""  # of models that this package doesn't read
