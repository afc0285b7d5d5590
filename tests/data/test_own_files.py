"""What has come up at the output, or lies in it, is a user's and stays as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from stopped_preparation import OPTIONS, RARE, ROWS, all_files, interrupt, log, users_own

from dlrm_jax.data.preprocessing import conversion, pipeline
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.errors import UserError


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text(log())
    return path


@pytest.mark.parametrize("kind", ["file", "link", "directory", "other data"])
@pytest.mark.parametrize("replaces", [False, True])
def test_what_comes_up_at_the_output_stays(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, replaces: bool
):
    def run(*arguments: object, run=pipeline._run) -> None:
        run(*arguments)
        if replaces:
            shutil.move(tmp_path / "out", tmp_path / "moved")
        if kind == "other data":
            shutil.copytree(tmp_path / "other", tmp_path / "out")
        else:
            users_own(tmp_path / "out", kind)
        before.update(all_files(tmp_path))

    before: dict[str, object] = {}
    preprocess([raw], tmp_path / "other", OPTIONS)
    if replaces:
        preprocess([raw], tmp_path / "out", OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_run", run)
        with pytest.raises(UserError, match=r"out came up .* complete in .*out\.partial; move .*"):
            preprocess([raw], tmp_path / "out", RARE, replace=replaces)
    after = all_files(tmp_path)
    kept = {x: y for x, y in before.items() if not x.startswith("out.partial/columns")}
    kept.pop("out.partial/begun.json")
    assert kept == after
    (tmp_path / "out").rename(tmp_path / "elsewhere_again")
    monkeypatch.setattr(pipeline, "_run", None)
    assert sum(preprocess([raw], tmp_path / "out", RARE).days) == ROWS


@pytest.mark.parametrize("name", ["notes.txt", "runs/a/model", "vocabularies/mine", "day_1.csv"])
def test_an_output_with_files_of_a_user_is_not_replaced(raw: Path, tmp_path: Path, name: str):
    preprocess([raw], tmp_path / "out", OPTIONS)
    (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "out" / name).write_text("mine")
    first = name if name.startswith("voc") else name.partition("/")[0]
    with pytest.raises(UserError, match=f"out is in the way: it holds {first}, which"):
        preprocess([raw], tmp_path / "out", RARE, replace=True)
    assert (tmp_path / "out" / name).read_text() == "mine"
    assert sum(preprocess([raw], tmp_path / "out", OPTIONS).days) == ROWS


def test_what_a_user_adds_meanwhile_is_not_replaced(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def run(*arguments: object, run=pipeline._run) -> None:
        run(*arguments)
        (tmp_path / "out" / "notes").write_text("mine")

    preprocess([raw], tmp_path / "out", OPTIONS)
    monkeypatch.setattr(pipeline, "_run", run)
    with pytest.raises(UserError, match=r"out is in the way: it holds notes, which"):
        preprocess([raw], tmp_path / "out", RARE, replace=True)
    assert (tmp_path / "out" / "notes").read_text() == "mine"


def test_unfinished_work_with_files_of_a_user_is_not_deleted(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    partial = interrupt(monkeypatch, raw, conversion, "write_day")
    (partial / "notes").write_text("mine")
    with pytest.raises(UserError, match=r"out\.partial is in the way: it holds notes, which"):
        preprocess([raw], tmp_path / "out", RARE)
    assert (partial / "notes").read_text() == "mine"


@pytest.mark.parametrize("name", ["out", "out.partial"])
def test_a_log_in_the_output_is_refused(raw: Path, tmp_path: Path, name: str):
    preprocess([raw], tmp_path / "out", OPTIONS)
    if name == "out.partial":
        (tmp_path / name).mkdir()
    own = tmp_path / name / "log.csv"
    own.write_text(log(1))
    with pytest.raises(UserError, match=rf"log\.csv lies in the output {tmp_path / name}; move"):
        preprocess([own], tmp_path / "out", RARE, replace=True)
    assert own.exists()


def test_the_earlier_output_of_a_killed_process_is_swept(raw: Path, tmp_path: Path):
    left = tmp_path / ".out.replaced.dlrm_jax"
    (left / "out").mkdir(parents=True)
    (left / "made_by_dlrm_jax").touch()
    preprocess([raw], tmp_path / "out", OPTIONS)
    assert not left.exists()
