"""What a run keeps of its data: whole, once, and of its own data only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, get_type_hints

import polars as pl
import pytest

from dlrm_jax.data.metadata import FORMAT, Metadata
from dlrm_jax.data.preprocessing.vocabulary import read_entries
from dlrm_jax.errors import UserError
from dlrm_jax.inference import vocabularies
from dlrm_jax.training.kept_data import find_kept


def prepared(directory: Path, fingerprint: str = "f") -> Path:
    """A directory of data with a vocabulary for each of two columns, and no arrays."""
    fields = {name: kind() for name, kind in get_type_hints(Metadata).items()}  # all empty
    made_from = {"format": FORMAT, "inputs": [], "options": {}}
    splits = {name: [] for name in ("train", "validation", "test")}
    fields |= {"made_from": made_from, "splits": splits, "fingerprint": fingerprint}
    (directory / "vocabularies").mkdir(parents=True)
    (directory / "metadata.json").write_text(json.dumps(fields))
    for i in range(2):
        table = pl.DataFrame({"value": [f"{fingerprint}{i}"], "count": [3], "id": [2]})
        table.write_parquet(directory / "vocabularies" / f"{i}.parquet")
    return directory


def values(directory: Path) -> list[str]:
    paths = [directory / "vocabularies" / f"{i}.parquet" for i in range(2)]
    return [pl.read_parquet(path)["value"][0] for path in paths]


def test_kept(tmp_path: Path):
    data, workdir = prepared(tmp_path / "data"), tmp_path / "run"
    checkpoint = workdir / "checkpoints" / "00000005"
    checkpoint.mkdir(parents=True)
    assert find_kept(checkpoint) is None
    vocabularies.keep(data, "f", workdir)
    kept = find_kept(checkpoint)
    assert kept is not None
    assert kept == workdir / "preprocessing"
    assert {path.name for path in workdir.iterdir()} == {"checkpoints", "preprocessing"}
    assert values(kept) == ["f0", "f1"]
    assert vocabularies.check_same_data(kept, checkpoint, "f") == Metadata.read(data)
    pl.DataFrame({"value": ["x"], "id": [2]}).write_parquet(data / "vocabularies" / "0.parquet")
    assert values(kept) == ["f0", "f1"]  # whatever is written into the data's files later


@pytest.mark.parametrize("number", range(3))
def test_data_that_are_replaced_between_two_files_are_not_kept(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def copyfile(*args: Any, copyfile: Any = shutil.copyfile, **options: Any) -> Any:
        copied.append(args)
        if len(copied) == number + 1:
            data.rename(tmp_path / "old")
            other.rename(data)
        return copyfile(*args, **options)

    data, other, copied = prepared(tmp_path / "data"), prepared(tmp_path / "other", "g"), []
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(shutil, "copyfile", copyfile)
    with pytest.raises(UserError, match="data was replaced by other data meanwhile"):
        vocabularies.keep(data, "f", tmp_path / "run")
    assert len(copied) == 3
    assert list((tmp_path / "run").iterdir()) == []


def test_a_directory_of_code_beside_a_link_has_no_vocabularies(tmp_path: Path):
    checkpoint = tmp_path / "runs" / "a" / "checkpoints" / "00000005"
    checkpoint.mkdir(parents=True)
    kept = prepared(tmp_path / "runs" / "a" / "preprocessing")
    (tmp_path / "project" / "preprocessing").mkdir(parents=True)
    (tmp_path / "project" / "preprocessing" / "clean.py").touch()
    (tmp_path / "project" / "models").mkdir()
    link = tmp_path / "project" / "models" / "best"
    link.symlink_to(checkpoint)
    assert find_kept(link) == kept


def test_kept_once_for_the_same_data(tmp_path: Path):
    data, workdir = prepared(tmp_path / "data"), tmp_path / "run"
    workdir.mkdir()
    vocabularies.keep(data, "f", workdir)
    before = (workdir / "preprocessing").stat().st_ino
    (workdir / "preprocessing" / ".DS_Store").touch()  # of another program
    vocabularies.keep(data, "f", workdir)
    assert (workdir / "preprocessing").stat().st_ino == before
    (workdir / "preprocessing" / ".DS_Store").unlink()
    vocabularies.keep(prepared(tmp_path / "other", "g"), "g", workdir)
    assert values(workdir / "preprocessing") == ["g0", "g1"]


def test_prepared_data_of_that_name_are_not_replaced(tmp_path: Path):
    own = prepared(tmp_path / "run" / "preprocessing", "g")
    (own / "day_0_dense.npy").touch()
    with pytest.raises(UserError, match=r"has more than vocabularies, such as day_0_dense\.npy"):
        vocabularies.keep(prepared(tmp_path / "data"), "f", tmp_path / "run")
    assert values(own) == ["g0", "g1"]
    (own / "metadata.json").unlink()
    with pytest.raises(UserError, match=r"has more than vocabularies, such as day_0_dense\.npy"):
        vocabularies.keep(tmp_path / "data", "f", tmp_path / "run")
    (own / "day_0_dense.npy").unlink()
    with pytest.raises(UserError, match=r"isn't a directory of prepared data"):
        vocabularies.keep(tmp_path / "data", "f", tmp_path / "run")
    assert values(own) == ["g0", "g1"]


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


def test_prepared_data_for_a_model_of_a_stream(tmp_path: Path):
    checkpoint = tmp_path / "checkpoint"
    saved = Path(__file__).parents[1] / "previous/run_of_format_3/checkpoints/00000006"
    shutil.copytree(saved, checkpoint)
    path = checkpoint / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stream": {}}))
    with pytest.raises(UserError, match=r"trained on a stream, .* Give raw logs"):
        vocabularies.check_same_data(prepared(tmp_path / "data"), checkpoint, "g")


def test_damage_that_polars_takes_for_its_own_mistake_is_named(tmp_path: Path):
    path = prepared(tmp_path / "data") / "vocabularies" / "0.parquet"
    content = bytearray(path.read_bytes())
    content[42] ^= 1  # in the header of the first page
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read the vocabulary .*0\.parquet"):
        vocabularies.read_values(tmp_path / "data", 0)
    with pytest.raises(UserError, match=r"cannot read the vocabulary .*0\.parquet"):
        read_entries(pl.Series(["f0"]), path)


@pytest.mark.parametrize(
    ("compatible", "special"),
    [("", {"unseen": 0, "missing": 1}), ("torchrec", {"unseen": 1}), ("reference", {})],
)
def test_unseen_and_missing_values_are_told_apart(
    compatible: str, special: dict[str, int], tmp_path: Path
):
    data = prepared(tmp_path / "data")
    path = data / "metadata.json"
    described = json.loads(path.read_text())
    described["made_from"]["options"]["compatible"] = compatible
    path.write_text(json.dumps(described))
    found = vocabularies.read_values(data, 1)
    assert found.filter(meaning="value").rows() == [("f1", "value", 2)]
    others = found.filter(pl.col("value").is_null())
    assert dict(others.select("meaning", "id").iter_rows()) == special
    expected = {number: f"({name})" for name, number in special.items()} | {2: "f1"}
    names = vocabularies.names_of(data, 1, range(4))
    assert names == {number: expected.get(number, "(unused)") for number in range(4)}


def test_values_that_share_an_id_are_named_by_the_first(tmp_path: Path):
    data = prepared(tmp_path / "data")
    path = data / "vocabularies" / "1.parquet"
    values = pl.read_parquet(path)
    pl.concat([values, values.with_columns(value=pl.lit("later"))]).write_parquet(path)
    assert vocabularies.names_of(data, 1, [2]) == {2: "f1 and 1 more"}
