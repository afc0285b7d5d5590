"""Deltas that come from others, or were changed: they don't fit, and nothing else happens."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from dlrm_jax.artifact.artifact import read_layer
from dlrm_jax.artifact.delta import DELTA, FORMAT, DeltaNote, Rows, read_delta, write_delta
from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.artifact.signed_text import signed_text
from dlrm_jax.errors import DamagedArtifactError, UserError

NOTE = DeltaNote(1, 7, 0.5, "base", "before", (), {})


def written(artifact: Path, directory: Path, rows: dict[str, Rows]) -> Manifest:
    manifest = Manifest.read(artifact)
    layers = {x.name: read_layer(artifact, x) for x in manifest.layers}
    directory.mkdir()
    write_delta(directory, NOTE, rows, layers)
    return manifest


def rows_of(manifest: Manifest, numbers: list[int]) -> dict[str, Rows]:
    table = manifest.tables[0]
    stored = np.arange(len(numbers) * table.dim, dtype=np.float32).reshape(len(numbers), -1)
    return {table.name: (np.array(numbers, np.int32), stored.view(np.uint8))}


def test_what_is_read_is_what_was_written(artifact: Path, tmp_path: Path):
    rows = rows_of(Manifest.read(artifact), [0, 3, 5])
    manifest = written(artifact, tmp_path / "1", rows)
    found = read_delta(tmp_path / "1", manifest)
    assert dataclasses.replace(found.note, tables=(), files={}) == NOTE
    assert found.rows.keys() == rows.keys()
    for name, own in rows.items():
        for expected, array in zip(own, found.rows[name], strict=True):
            np.testing.assert_array_equal(array, expected)
    for note in manifest.layers:
        np.testing.assert_array_equal(found.layers[note.name], read_layer(artifact, note))


@pytest.mark.parametrize("numbers", [[3, 3], [5, 3], [-1, 3], [3, 10**6]])
def test_numbers_that_are_not_ascending_rows_of_the_table(
    numbers: list[int], artifact: Path, tmp_path: Path
):
    manifest = written(artifact, tmp_path / "1", rows_of(Manifest.read(artifact), numbers))
    with pytest.raises(DamagedArtifactError, match="expected ascending numbers of its"):
        read_delta(tmp_path / "1", manifest)


def test_a_table_or_layers_of_another_artifact(artifact: Path, tmp_path: Path):
    own = Manifest.read(artifact)
    manifest = written(artifact, tmp_path / "1", rows_of(own, [0, 1]))
    others = dataclasses.replace(manifest, tables=manifest.tables[1:])
    with pytest.raises(DamagedArtifactError, match="is no table of the artifact"):
        read_delta(tmp_path / "1", others)
    wider = dataclasses.replace(own.tables[0], dim=own.tables[0].dim + 1)
    with pytest.raises(DamagedArtifactError, match="there are fewer rows of table"):
        read_delta(tmp_path / "1", dataclasses.replace(own, tables=(wider, *own.tables[1:])))
    for layers in (own.layers[1:], (*own.layers, dataclasses.replace(own.layers[0], name="x"))):
        with pytest.raises(DamagedArtifactError, match=r"other layers|fewer numbers of layer"):
            read_delta(tmp_path / "1", dataclasses.replace(own, layers=layers))


def test_links_and_pipes_are_refused(artifact: Path, tmp_path: Path):
    manifest = written(artifact, tmp_path / "1", {})
    path = tmp_path / "1" / "layers.bytes"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedArtifactError, match="expected a file, found none"):
        read_delta(tmp_path / "1", manifest)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedArtifactError, match="expected a file, found none"):
        read_delta(tmp_path / "1", manifest)


def test_a_later_format(artifact: Path, tmp_path: Path):
    manifest = written(artifact, tmp_path / "1", {})
    text = signed_text({"format": FORMAT + 1})
    (tmp_path / "1" / DELTA).write_text(text)
    with pytest.raises(UserError, match="a later version of it wrote the delta"):
        read_delta(tmp_path / "1", manifest)
