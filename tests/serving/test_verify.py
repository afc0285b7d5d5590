"""Whatever is changed in an artifact is found, and the file is named."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from dlrm_jax.artifact.dense_program import DenseProgram
from dlrm_jax.artifact.files import note_files
from dlrm_jax.artifact.manifest import MANIFEST, Manifest
from dlrm_jax.errors import DamagedArtifactError, UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.serving.verify import PROGRAM, verify


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    return shutil.copytree(artifact, tmp_path / "copy")


def files(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.rglob("*")) if path.is_file())


def rewritten(directory: Path, **changes: Any) -> None:
    """Gives an artifact another manifest, whose own checksum is right."""
    dataclasses.replace(Manifest.read(directory), **changes).write(directory)


def test_what_was_written(copy: Path):
    (copy / "notes.txt").touch()
    found = verify(copy)
    assert found.golden == {PROGRAM: (35, 0.0)}
    assert found.others == ["notes.txt"]


def test_flipped_bits_are_found_in_any_file(copy: Path):
    chance = random.Random(0)
    for path in files(copy):
        content, name = path.read_bytes(), str(path.relative_to(copy))
        for place in {0, len(content) - 1, *chance.choices(range(len(content)), k=5)}:
            changed = bytearray(content)
            changed[place] ^= 1 << chance.randrange(8)
            path.write_bytes(changed)
            with pytest.raises(UserError, match=r"is damaged|a later version") as raised:
                verify(copy)
            assert name in str(raised.value), place
        path.write_bytes(content)


def test_other_lengths_and_missing_files_are_found_when_it_is_loaded(copy: Path):
    for path in files(copy):
        content, name = path.read_bytes(), str(path.relative_to(copy))
        for changed in (content[:-1], content + b"\0", b"", None):
            path.unlink() if changed is None else path.write_bytes(changed)
            with pytest.raises(UserError) as raised:
                Predictor.load(copy)
            assert name in str(raised.value) or name == MANIFEST
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["../x", "/etc/hostname", "a/../x", "tables//C1.rows", "x\0y"])
def test_names_do_not_lead_elsewhere(copy: Path, name: str):
    (copy.parent / "x").touch()
    noted = Manifest.read(copy).files
    rewritten(copy, files={**noted, name: next(iter(noted.values()))})
    for read in (verify, Predictor.load):
        with pytest.raises(DamagedArtifactError, match="expected the name of a file in the art"):
            read(copy)


@pytest.mark.parametrize("name", ["tables", "tables/C1.rows", "preprocessing/vocabularies"])
def test_links_do_not_lead_elsewhere(copy: Path, name: str):
    (copy / name).rename(copy.parent / "elsewhere")
    (copy / name).symlink_to(copy.parent / "elsewhere")
    with pytest.raises(DamagedArtifactError, match=f"{name}: expected no link, found one"):
        Predictor.load(copy)
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(DamagedArtifactError, match=f"{name}.*(it is missing|, found none)"):
        Predictor.load(copy)


@pytest.mark.parametrize("name", ["0.parquet", "more", "../../pipe"])
def test_pipes_are_refused_that_nobody_names(copy: Path, name: str):
    """Whatever reads one would wait for ever."""
    name = f"preprocessing/vocabularies/{name}"
    noted = Manifest.read(copy).files
    rewritten(copy, files={x: y for x, y in noted.items() if x != name})
    (copy / name).unlink(missing_ok=True)
    os.mkfifo(copy / name)
    for read in (verify, Predictor.load):
        with pytest.raises(DamagedArtifactError, match="expected a file or a directory, found non"):
            read(copy)


def test_a_pipe_is_no_manifest(copy: Path):
    (copy / MANIFEST).unlink()
    os.mkfifo(copy / MANIFEST)
    with pytest.raises(UserError, match=r"is no artifact: cannot read .*: expected a file"):
        verify(copy)


@pytest.mark.parametrize("is_there", [True, False])
def test_vocabularies_must_be_named(copy: Path, is_there: bool):
    name = "preprocessing/vocabularies/1.parquet"
    noted = Manifest.read(copy).files
    rewritten(copy, files={x: y for x, y in noted.items() if x != name})
    if not is_there:
        (copy / name).unlink()
    for read in (verify, Predictor.load):
        with pytest.raises(DamagedArtifactError, match=rf"{name}: the manifest doesn't name it"):
            read(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pl.col("id").cast(pl.String).cast(pl.Categorical), "id of type Categorical"),
        (pl.col("id").cast(pl.String).cast(pl.Binary), "id of type Binary"),
        (pl.col("value").cast(pl.String).cast(pl.Categorical), "value of type Categorical"),
        (pl.concat_list("value"), r"value of type List\(String\)"),
        (pl.lit(-7, pl.Int32).alias("id"), "the id -7"),
        (pl.lit(None, pl.Int32).alias("id"), "the id None"),
        (pl.lit("a").alias("value"), "the value 'a' twice"),
    ],
)
def test_vocabularies_of_other_types(copy: Path, change: pl.Expr, message: str):
    path = copy / "preprocessing" / "vocabularies" / "1.parquet"
    pl.read_parquet(path).with_columns(change).write_parquet(path)
    rewritten(copy, files=note_files(copy))
    with pytest.raises(UserError, match=rf"1\.parquet is damaged: it has {message}; restore"):
        verify(copy)


def test_values_that_no_check_foresaw_are_damage(copy: Path, monkeypatch: pytest.MonkeyPatch):
    def too_large(*_: object) -> None:
        raise OverflowError("too large")

    monkeypatch.setattr("dlrm_jax.artifact.artifact.read_programs", too_large)
    with pytest.raises(DamagedArtifactError, match=r"OverflowError: too large") as raised:
        Predictor.load(copy)
    assert isinstance(raised.value.__cause__, OverflowError)


def test_other_predictions_are_found(copy: Path, monkeypatch: pytest.MonkeyPatch):
    path = copy / "golden" / "probabilities.npy"
    expected = np.load(path)

    def differ_by(logit: float) -> None:
        np.save(path, expected + np.eye(1, 35)[0] * logit * expected * (1 - expected))
        rewritten(copy, files=note_files(copy))

    differ_by(4e-5)
    with pytest.raises(DamagedArtifactError, match=r"golden/prob.*, they differ by [34].*e-05"):
        verify(copy)
    # Other machines round bfloat16's 8 bits in other places.
    monkeypatch.setattr(DenseProgram, "is_float32", False)
    assert 0 < verify(copy).golden[PROGRAM].difference <= 1e-5
    differ_by(0.08)
    with pytest.raises(DamagedArtifactError, match=r"to within 0\.04, they differ by 0\.0[78]"):
        verify(copy)


def test_golden_rows_must_be_named(copy: Path):
    noted = Manifest.read(copy).files
    rewritten(copy, files={x: y for x, y in noted.items() if x != "golden/ids.npy"})
    with pytest.raises(DamagedArtifactError, match=r"golden/ids\.npy: the manifest doesn't name"):
        verify(copy)


def test_a_later_version_is_named(copy: Path):
    content = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({"format": 3, "anything": content}))
    for read in (verify, Predictor.load):
        with pytest.raises(UserError, match=r"manifest\.json has format 3, this program reads 2"):
            read(copy)


def test_what_is_no_artifact(tmp_path: Path):
    with pytest.raises(UserError, match="is no artifact: cannot read"):
        verify(tmp_path)


def test_programs_that_do_not_fit_the_manifest(copy: Path):
    rewritten(copy, dense_features=2, dense_layers=None)
    with pytest.raises(DamagedArtifactError, match=r"float32\[batch, 2\].* it is one of .*, 1\]"):
        Predictor.load(copy)


def test_layers_and_tables_that_do_not_fit_the_manifest(copy: Path):
    manifest = Manifest.read(copy)
    (first, *others) = manifest.layers
    rewritten(copy, layers=(dataclasses.replace(first, shape=(2, 2)), *others), dense_layers=None)
    with pytest.raises(DamagedArtifactError, match=r"expected float32 of shape \[2, 2\], it has"):
        Predictor.load(copy)
    (table, *rest) = manifest.tables
    rewritten(copy, layers=manifest.layers, tables=(dataclasses.replace(table, rows=99), *rest))
    with pytest.raises(
        DamagedArtifactError, match=r"C1\.rows: .*, 99 rows of 4 numbers .*, got 672"
    ):
        Predictor.load(copy)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("dense", lambda x: x[0, 0], r"expected float32 of shape \[any, 1\], it has .* shape \[\]"),
        ("dense", lambda x: x.astype(np.float64), "expected float32 of .*, it has float64"),
        ("dense", lambda x: x[:0], "expected golden rows, it has none"),
        ("ids", lambda x: x.astype(str), "expected int32 of shape .*, it has <U"),
        ("ids", lambda x: x[1:], r"expected int32 of shape \[35, 3\]"),
        ("probabilities", lambda x: x.astype(str), "expected float64 of shape .*, it has <U"),
        ("probabilities", lambda x: x[:, None], r"expected float64 of shape \[35\]"),
        ("probabilities", lambda x: x * 1j, "expected float64 of shape .*, it has complex"),
    ],
)
def test_golden_rows_of_another_kind(copy: Path, name: str, change, message: str):
    path = copy / "golden" / f"{name}.npy"
    np.save(path, change(np.load(path)))
    rewritten(copy, files=note_files(copy))
    with pytest.raises(DamagedArtifactError, match=rf"golden/{name}\.npy: {message}"):
        verify(copy)


def test_golden_rows_may_lie_column_by_column(copy: Path):
    path = copy / "golden" / "ids.npy"
    np.save(path, np.asfortranarray(np.load(path)))
    rewritten(copy, files=note_files(copy))
    assert verify(copy).others == []
