"""What a directory of publications has: bases, which are artifacts named by steps, and deltas."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dlrm_jax.artifact.delta import Delta
from dlrm_jax.artifact.delta_chain import DeltaChain, delta_path, deltas_of
from dlrm_jax.artifact.files import check_content, check_present
from dlrm_jax.artifact.id_rows import IdRows
from dlrm_jax.artifact.manifest import Manifest, is_artifact
from dlrm_jax.artifact.row_formats import RowFormat, encode
from dlrm_jax.artifact.tables import map_rows
from dlrm_jax.dynamic_ids.keys import Keys
from dlrm_jax.errors import UserError
from dlrm_jax.files import delete_directory
from dlrm_jax.locks import locked
from dlrm_jax.publishing.live_model import LiveModel
from dlrm_jax.serving.export import describe
from dlrm_jax.serving.table_variants import notes_of
from dlrm_jax.serving.versions import PUBLISHING_LOCK
from dlrm_jax.training.touched_rows import Numbers
from dlrm_jax.workspaces import sweep


class Published(NamedTuple):
    """The newest base, and its deltas as far as they were read.

    Attributes:
        directory: directory of the base.
        manifest: its manifest.
        chain: its deltas.
    """

    directory: Path
    manifest: Manifest
    chain: DeltaChain


def check_directory(directory: Path, workdir: Path) -> None:
    """Checks that a run may publish into a directory, which needn't be there.

    Args:
        directory: directory of the publications.
        workdir: directory of the run, which has files of its own.

    Raises:
        UserError: it is the workdir, in it or above it, it can't be read, or something else is in
            it: versions that a user has put there would be deleted some day.
    """
    own, other = directory.resolve(), workdir.resolve()
    if own.is_relative_to(other) or other.is_relative_to(own):
        raise UserError(
            f"publish: expected a directory apart from the workdir {workdir}, got {directory}; "
            f"what is old in it is deleted, so give one beside the workdir"
        )
    try:
        is_ours = (directory / PUBLISHING_LOCK).is_file()
        if not is_ours and directory.exists() and any(directory.iterdir()):
            raise UserError(
                f"publish: expected a new directory, or one that train --publish has made, got "
                f"{directory}, which has files and no {PUBLISHING_LOCK}; give another name"
            )
    except OSError as error:
        raise UserError(f"publish: cannot publish in {directory}: {error}") from error


@contextlib.contextmanager
def publications(directory: Path, workdir: Path, patience: float = 0.0) -> Iterator[None]:
    """Context in which this process alone publishes into a directory, which is made.

    Args:
        directory: directory of the publications.
        workdir: directory of the run, which has files of its own.
        patience: seconds in which another process may give it back.

    Raises:
        UserError: another process publishes into it, or it can't be made; see also
            `check_directory`.
    """
    check_directory(directory, workdir)
    try:
        with locked(directory / PUBLISHING_LOCK, f"directory {directory}", patience=patience):
            sweep(directory)
            _sweep_deltas(directory)
            yield
    except OSError as error:
        raise UserError(f"publish: cannot publish in {directory}: {error}") from error


def _sweep_deltas(directory: Path) -> None:
    """Deletes deltas without a base: a killed process wrote them before it, or deleted it first.

    They are read by nobody, and would be in the way of those of a later base of that step.
    """
    for path in sorted(directory.glob("*.deltas")):
        base = path.with_suffix("")
        if base.name.isdecimal() and not base.exists():
            delete_directory(path)


def bases_in(directory: Path) -> list[Path]:
    """The bases in a directory, the newest last: artifacts, of which the names are steps."""
    found = (x for x in directory.iterdir() if _is_step(x.name) and is_artifact(x))
    return sorted(found, key=lambda x: int(x.name))


def _is_step(name: str) -> bool:
    """Whether a name is a number as it is written here; a checkpoint's has zeros before it."""
    return name.isdecimal() and str(int(name)) == name


def delete_base(base: Path) -> None:
    """Deletes a base and its deltas; who has mapped them keeps them."""
    delete_directory(base)
    delete_directory(deltas_of(base))


def newest(directory: Path) -> Published | None:
    """The newest base in a directory, and its deltas, of which none is read; None if there is none.

    Raises:
        UserError: it can't be read.
    """
    bases = bases_in(directory)
    if not bases:
        return None
    manifest = Manifest.read(bases[-1])
    check_present(bases[-1], manifest.files)
    return Published(bases[-1], manifest, DeltaChain(bases[-1], manifest))


def last_step(directory: Path) -> int:
    """The newest step that a base is named by; -1 if there is none."""
    bases = bases_in(directory)
    return int(bases[-1].name) if bases else -1


_OF_STATE = ("layers", "programs", "files", "step", "dense_layers")
"""Fields of a manifest that are another base's own."""

OF_WRITER = frozenset(("name", "made_by"))
"""Fields of a manifest that may change while a run goes on: by a new workdir or an upgrade."""


def differences(manifest: Manifest, model: LiveModel, name: str, row_format: RowFormat) -> set[str]:
    """The fields in which a base isn't what an export of the model would be, but for its numbers.

    Deltas of the model can follow the base if there are none.
    """
    wanted = describe(model, name, notes_of(model, row_format))
    names = (x.name for x in dataclasses.fields(Manifest) if x.name not in _OF_STATE)
    found = {x for x in names if getattr(manifest, x) != getattr(wanted, x)}
    layers = {name: (x.shape, str(x.dtype)) for name, x in model.dense.layers.items()}
    if layers != {x.name: (x.shape, x.dtype) for x in manifest.layers}:
        found.add("layers")
    return found


def differing_rows(published: Published, model: LiveModel) -> tuple[Numbers, dict[str, Keys]]:
    """The rows of a state that aren't those of the newest base and its deltas, by their bytes.

    All deltas are read, one after the other. Rows may differ however the state came about: it may
    be from before or after the last publication, or of a run on another mesh.

    Returns:
        numbers: numbers of the rows.
        keys: ids of the rows of what is published, by map.

    Raises:
        UserError: the base or a delta can't be read, or isn't as it was written, or gives an id two
            rows.
    """
    directory, manifest, chain = published
    for name, note in manifest.files.items():
        check_content(directory, name, note)
    tables = {x.name: map_rows(directory, x, private=True) for x in manifest.tables}
    ids = IdRows.read(directory, manifest)
    for delta in chain.rest():
        for name, (numbers, rows) in delta.rows.items():
            tables[name].rows[numbers] = rows
        apply_keys(ids, delta, chain)
    found: Numbers = {}
    for name, table in tables.items():
        parts = []
        for first, own in model.blocks(name):
            there = table.rows[first : first + len(own)]
            stored = encode(own.astype(np.float32), table.row_format, first_row=first)
            differ = np.flatnonzero((stored != there).any(axis=1))
            parts.append(first + differ.astype(np.int32))
        if len(numbers := np.concatenate(parts)):
            found[name] = numbers
    return found, {name: index.keys for name, index in ids.indexes.items()} if ids else {}


def apply_keys(ids: IdRows | None, delta: Delta, chain: DeltaChain) -> None:
    """Gives rows the ids that a delta says.

    Args:
        ids: rows of ids before it; None if ids are rows.
        delta: delta.
        chain: its chain.

    Raises:
        DamagedDeltaError: an id would have two rows.
    """
    if ids:
        ids.check(delta_path(chain.directory, delta.note.number), delta.keys)
        ids.apply(delta.keys)
