"""What a run keeps of its data: whole, once, and of its own data only."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import get_type_hints

import polars as pl
import pytest

from dlrm_jax.data.directory import FORMAT, Metadata
from dlrm_jax.errors import UserError
from dlrm_jax.inference import vocabularies


def prepared(directory: Path, fingerprint: str = "f") -> Path:
    """A directory of data with a vocabulary for each of two columns, and no arrays."""
    fields = {name: kind() for name, kind in get_type_hints(Metadata).items()}  # all empty
    fields |= {"made_from": {"format": FORMAT}, "fingerprint": fingerprint}
    (directory / "vocabularies").mkdir(parents=True)
    (directory / "metadata.json").write_text(json.dumps(fields))
    for i in range(2):
        table = pl.DataFrame({"value": [f"{fingerprint}{i}"], "count": [3], "id": [2]})
        table.write_parquet(directory / "vocabularies" / f"{i}.parquet")
    return directory


def values(directory: Path) -> list[str]:
    return [vocabularies.read_values(directory, i)["value"][0] for i in range(2)]


@pytest.mark.parametrize("links", [True, False])
def test_kept(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data, workdir = prepared(tmp_path / "data"), tmp_path / "run"
    checkpoint = workdir / "checkpoints" / "00000005"
    checkpoint.mkdir(parents=True)
    assert vocabularies.find_kept(checkpoint) is None
    if not links:

        def refuse(*_: object) -> None:
            raise OSError("no links here")

        monkeypatch.setattr(os, "link", refuse)
    vocabularies.keep(data, "f", workdir)
    kept = vocabularies.find_kept(checkpoint)
    assert kept is not None
    assert kept == workdir / "preprocessing"
    assert {path.name for path in workdir.iterdir()} == {"checkpoints", "preprocessing"}
    assert values(kept) == ["f0", "f1"]
    assert vocabularies.check_same_data(kept, checkpoint, "f") == Metadata.read(data)
    same = kept.joinpath("vocabularies/0.parquet").samefile(data / "vocabularies/0.parquet")
    assert same == links


def test_kept_once_for_the_same_data(tmp_path: Path):
    data, workdir = prepared(tmp_path / "data"), tmp_path / "run"
    workdir.mkdir()
    vocabularies.keep(data, "f", workdir)
    before = (workdir / "preprocessing").stat().st_ino
    vocabularies.keep(data, "f", workdir)
    assert (workdir / "preprocessing").stat().st_ino == before
    vocabularies.keep(prepared(tmp_path / "other", "g"), "g", workdir)
    assert values(workdir / "preprocessing") == ["g0", "g1"]


def test_half_a_directory_is_not_kept(tmp_path: Path):
    data, workdir = prepared(tmp_path / "data"), tmp_path / "run"
    (workdir / ".preprocessing.dlrm_jax").mkdir(parents=True)
    vocabularies.keep(data, "f", workdir)  # what an interrupted one has left is no obstacle
    assert [path.name for path in workdir.iterdir()] == ["preprocessing"]
    broken = prepared(tmp_path / "broken", "g")
    for path in (broken / "vocabularies").iterdir():
        path.unlink()
    (broken / "vocabularies").rmdir()
    with pytest.raises(UserError, match=r"cannot keep the vocabularies of .*broken"):
        vocabularies.keep(broken, "g", tmp_path)
    with pytest.raises(UserError, match="was replaced by other data meanwhile"):
        vocabularies.keep(data, "g", tmp_path)
    assert not (tmp_path / "preprocessing").exists()


def test_other_data_and_damage(tmp_path: Path):
    data = prepared(tmp_path / "data")
    with pytest.raises(UserError, match=r"isn't the data that ck was trained on.*raw logs"):
        vocabularies.check_same_data(data, Path("ck"), "g")
    with pytest.raises(UserError, match=r"cannot read the vocabulary .*2\.parquet"):
        vocabularies.read_values(data, 2)
