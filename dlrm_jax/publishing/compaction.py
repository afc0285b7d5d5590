"""A new base of a base and its deltas: the bytes that an export of the last state would have."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from dlrm_jax.artifact.artifact import Artifact, write_layer
from dlrm_jax.artifact.delta import read_note, write_note
from dlrm_jax.artifact.delta_chain import DeltaChain, delta_path, deltas_of
from dlrm_jax.artifact.files import check_content, check_present, note_files
from dlrm_jax.artifact.id_rows import IdRows
from dlrm_jax.artifact.key_files import write_keys
from dlrm_jax.artifact.manifest import MANIFEST, Manifest, is_artifact
from dlrm_jax.artifact.row_formats import row_bytes
from dlrm_jax.errors import DamagedArtifactError, UserError
from dlrm_jax.files import creating, delete_directory, flush_all
from dlrm_jax.inference.artifact_scorer import ArtifactScorer
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.publishing.published import Published, apply_keys
from dlrm_jax.serving import golden
from dlrm_jax.serving.export import GOLDEN_BATCH


def compact(
    published: Published,
    last: int,
    writing: AbstractContextManager[object],
    done: Callable[[Published], None],
) -> None:
    """Writes a base beside another one, of its first deltas, with the later ones as its own.

    It is seen when it is complete, with the state that the other one has by then.

    Args:
        published: base; its chain may go on meanwhile.
        last: number of the last delta that the new base has, 1 or more.
        writing: lock that whoever writes deltas holds; it is taken at the end, for a moment.
        done: called with the new base and its chain before the lock is given back.

    Raises:
        UserError: a file can't be read or written. Nothing is left of the new base.
        DamagedArtifactError: a file of the base or of a delta isn't as it was written, or a delta
            gives an id a second row.
    """
    source, before = published.directory, published.manifest
    step = read_note(delta_path(published.chain.directory, last))[0].step
    output = source.with_name(str(step))
    with contextlib.ExitStack() as stack:
        with creating(output) as directory:
            manifest = _write(directory, source, before, last)
            flush_all(directory)
            stack.enter_context(writing)
            failed = stack.enter_context(contextlib.ExitStack())
            failed.callback(delete_directory, deltas_of(output))
            chain = _with_later_deltas(published.chain, directory, manifest, last, output)
        failed.pop_all()
        done(Published(output, manifest, chain))


def _write(directory: Path, source: Path, before: Manifest, last: int) -> Manifest:
    """Writes the files of the new base; returns its manifest."""
    directory.mkdir()
    try:
        for name in before.files:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, directory / name)
            # The new base has checksums of its own: damage would get one that fits.
            check_content(source, name, before.files[name], copy=directory / name)
        chain, layers = DeltaChain(source, before), {}
    except (FileNotFoundError, NotADirectoryError) as error:
        check_present(source, before.files)
        if not is_artifact(source):
            raise DamagedArtifactError(str(source), MANIFEST, "it is missing") from error
        raise
    ids = IdRows.read(source, before)
    tables = {
        x.name: np.memmap(
            directory / x.file, np.uint8, "r+", shape=(x.rows, row_bytes(x.row_format, x.dim))
        )
        for x in before.tables
    }
    for delta in itertools.islice(chain.rest(), last):
        layers = delta.layers
        for name, (numbers, rows) in delta.rows.items():
            tables[name][numbers] = rows
        apply_keys(ids, delta, chain)
    if chain.number < last:
        raise UserError(f"expected {last} deltas in {chain.directory}, there are {chain.number}")
    for table in tables.values():
        table.flush()
    del tables
    if ids:
        for note in ids.note.maps:
            write_keys(directory, note, ids.indexes[note.name].keys)
    for note in before.layers:
        (directory / note.file).unlink()
        write_layer(directory / note.file, layers[note.name])
    manifest = dataclasses.replace(before, step=chain.step)
    artifact = Artifact.open(directory, dataclasses.replace(manifest, files={}))
    predictor = Predictor(ArtifactScorer(artifact), GOLDEN_BATCH, shift=manifest.shift)
    # Ids that have rows are others than in the base; its other examples are drawn again.
    examples = golden.choose(artifact, None)
    shutil.rmtree(directory / golden.DIRECTORY)
    golden.write(directory, predictor, examples)
    manifest = dataclasses.replace(manifest, files=note_files(directory))
    manifest.write(directory)
    return manifest


def _with_later_deltas(
    chain: DeltaChain, written: Path, manifest: Manifest, last: int, output: Path
) -> DeltaChain:
    """Writes deltas that have come since as the first ones of the new base.

    Args:
        chain: deltas of the old base.
        written: directory of the new base, which has another name then.
        manifest: its manifest.
        last: number of the last delta that it has already.
        output: its name.
    """
    # The chain of the name that it will have.
    found = DeltaChain(written, manifest)
    found.directory = deltas_of(output)
    for number in range(last + 1, chain.number + 1):
        path = delta_path(chain.directory, number)
        note, _ = read_note(path)
        note = dataclasses.replace(
            note, number=found.number + 1, base=found.base, before=found.before
        )
        with creating(delta_path(found.directory, note.number)) as directory:
            directory.mkdir()
            for name in note.files:
                shutil.copyfile(path / name, directory / name)
            found.append(note, write_note(directory, note))
    return found
