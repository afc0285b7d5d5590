"""What lies where preparation writes is deleted only if it is provably ours."""

import os

import pytest
from stopped_preparation import OPTIONS, RARE, ROWS, all_files, interrupt, log, users_own

from dlrm_jax.data.preprocessing import conversion, freshness, pipeline
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.errors import UserError


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(log())
    return path


@pytest.mark.parametrize("kind", ["file", "link", "directory", "same name"])
def test_a_users_own_partial_is_named_before_any_work(raw, tmp_path, kind, monkeypatch):
    users_own(tmp_path / "out.partial", kind)
    before = all_files(tmp_path)
    monkeypatch.setattr(pipeline, "_run", None)
    with pytest.raises(UserError, match=r"out\.partial is in the way: it isn't unfinished work"):
        preprocess([raw], tmp_path / "out", OPTIONS)
    assert all_files(tmp_path) == before | {".out.lock": b""}


@pytest.mark.parametrize("kind", ["link", "directory"])
def test_a_users_other_files_stay(raw, tmp_path, kind, monkeypatch):
    users_own(tmp_path / "out.replaced", kind)
    users_own(tmp_path / "out.partial.deleting", "directory")
    before = all_files(tmp_path)
    interrupt(monkeypatch, raw, conversion, "stage", RARE)
    preprocess([raw], tmp_path / "out", OPTIONS)
    preprocess([raw], tmp_path / "out", RARE, replace=True)
    assert before.items() <= all_files(tmp_path).items()


@pytest.mark.parametrize(
    "content", [None, "{", "[1]", "{}", '{"made_from": {"options": {}, "inputs": ["at noon"]}}']
)
def test_what_is_not_provably_ours_is_not_replaced(raw, tmp_path, content):
    users_own(tmp_path / "out", "directory")
    if content:
        (tmp_path / "out" / "metadata.json").write_text(content)
    before = all_files(tmp_path)
    with pytest.raises(UserError, match=r"out is in the way: .*; move it, or give another"):
        preprocess([raw], tmp_path / "out", OPTIONS, replace=True)
    assert all_files(tmp_path) == before


@pytest.mark.parametrize("name", ["none.csv", ""])
def test_files_that_cannot_be_read_are_named_first(tmp_path, name):
    with pytest.raises(UserError, match=f"cannot read {tmp_path / name}: "):
        preprocess([tmp_path / name], tmp_path / "out", OPTIONS)


def test_finished_data_of_another_command_are_not_deleted(raw, tmp_path):
    preprocess([raw], tmp_path / "out", OPTIONS)
    (tmp_path / "out").rename(tmp_path / "out.partial")
    before = all_files(tmp_path / "out.partial")
    with pytest.raises(UserError, match=r"out\.partial is in the way: it holds finished data"):
        preprocess([raw], tmp_path / "out", RARE)
    assert all_files(tmp_path / "out.partial") == before
    preprocess([raw], tmp_path / "out", OPTIONS)
    assert all_files(tmp_path / "out") == before


@pytest.mark.parametrize("name", ["", "begun.json.partial", ".begun.json.dlrm_jax"])
def test_what_had_hardly_begun_is_no_obstacle(raw, tmp_path, name):
    (tmp_path / "out.partial" / name).mkdir(parents=True)
    preprocess([raw], tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out" / ".begun.json.dlrm_jax").exists()


@pytest.fixture
def locked_by_others(tmp_path):
    """The lock of ``out`` can't be had, even by root."""
    (tmp_path / ".out.lock").mkdir()


def test_an_output_of_someone_else_is_used(raw, tmp_path, locked_by_others, monkeypatch):
    preprocess([raw], tmp_path / "other", OPTIONS)
    (tmp_path / "other").rename(tmp_path / "out")
    assert sum(preprocess([raw], tmp_path / "out", OPTIONS).days) == ROWS
    os.utime(raw, ns=(1, 1))

    def read_only(*_):
        raise PermissionError

    monkeypatch.setattr(freshness, "write_json", read_only)
    assert sum(preprocess([raw], tmp_path / "out", OPTIONS).days) == ROWS
    with pytest.raises(UserError, match="min_count was 1, now 2"):
        preprocess([raw], tmp_path / "out", RARE)
