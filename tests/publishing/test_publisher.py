"""A base and its deltas are, byte for byte, what a full export of the state is."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from full_disk import largest_file
from publishing_run import COMPOSED, DYNAMIC, SHARED, compacted, files_in, run_of
from saved_run import CONFIG

from dlrm_jax.artifact.row_formats import RowFormat
from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.publishing import delta_writer
from dlrm_jax.publishing.compaction import compact
from dlrm_jax.publishing.published import newest
from dlrm_jax.serving import export as serving_export


@pytest.mark.parametrize(
    ("row_format", "mesh", "config"),
    [
        ("float32", "1x1", CONFIG),
        ("int8", "2x4", CONFIG),
        ("bfloat16", "1x1", SHARED),
        ("int4", "1x8", COMPOSED),
        ("float32", "1x1", DYNAMIC),
        ("int8", "2x4", DYNAMIC),
    ],
)
def test_base_and_deltas_are_a_full_export(
    row_format: RowFormat, mesh: str, config: Config, tmp_path: Path
):
    with run_of(tmp_path, row_format, mesh, config, share=1e9) as run:
        run.begin()
        for _ in range(4):
            run.publish()
            run.train(2)
        run.publisher.end(run.state)
        expected = files_in(run.exported(tmp_path / "expected", row_format))
    models = tmp_path / "models"
    assert sorted(x.name for x in models.iterdir()) == [
        "1", "1.deltas", "publishing.json", "publishing.lock",
    ]  # fmt: skip
    assert sorted(x.name for x in (models / "1.deltas").iterdir()) == [
        "000001", "000002", "000003", "000004",
    ]  # fmt: skip
    found = files_in(compacted(models))
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    before = files_in(models / "1")
    assert [name for name in found if name.startswith("tables") and found[name] != before[name]]


def test_frozen_tables_and_no_step_add_no_rows(tmp_path: Path):
    config = dataclasses.replace(CONFIG, frozen_tables=("C2",))
    with run_of(tmp_path, config=config, share=1e9) as run:
        run.begin()
        run.publish()
        run.publish()
        (delta,) = run.deltas()
        assert {name: len(numbers) for name, (numbers, _) in delta.rows.items()}.keys() == {
            "C1",
            "C3",
        }
        run.publisher.end(run.state)
        assert len(run.deltas()) == 1, "the last state is published already"


@pytest.mark.parametrize(
    ("is_later", "mesh", "config"),
    [
        (False, "1x1", CONFIG),
        (False, "2x4", CONFIG),
        (True, "1x1", CONFIG),
        (False, "2x4", DYNAMIC),
        (True, "1x1", DYNAMIC),
    ],
)
def test_a_run_goes_on_from_before_or_after_what_is_published(
    is_later: bool, mesh: str, config: Config, tmp_path: Path
):
    """After a crash: the checkpoint is older or newer than the last publication."""
    with run_of(tmp_path, config=config, share=1e9) as run:
        run.begin()
        run.publish()
        run.train(2)
        before = run.arrays()
        run.train(1)
        run.publish()
        run.train(2)
        after = run.arrays()
    with run_of(tmp_path, mesh=mesh, config=config, share=1e9) as run:
        run.begin(after if is_later else before)
        assert run.said == [f"publish: goes on after step 5 in {tmp_path / 'models'}"]
        if not is_later:
            run.publish()  # step 4, which is before what is published
            assert len(run.deltas()) == 1
            run.train(1)
        run.publish()
        assert len(run.deltas()) == 2
        expected = files_in(run.exported(tmp_path / "expected"))
    assert files_in(compacted(tmp_path / "models")) == expected


def test_new_bases_while_deltas_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begun, may_end = threading.Event(), threading.Event()

    def slow(published: Any, last: int, writing: Any, done: Any) -> None:
        class Waiting:
            def __enter__(self) -> None:
                begun.set()
                may_end.wait()
                writing.__enter__()

            def __exit__(self, *error: object) -> None:
                writing.__exit__(*error)

        compact(published, last, Waiting(), done)

    monkeypatch.setattr(delta_writer, "compact", slow)
    models = tmp_path / "models"
    with run_of(tmp_path, "int8", deltas=2, share=1e9) as run:
        run.begin()
        for _ in range(3):
            run.publish()
        assert begun.wait(20)
        for _ in range(2):
            run.publish()
        assert [x.name for x in run.bases()] == ["1"]
        may_end.set()
        run.publisher._writer.compact_if_due(wait=True)
        assert run.deltas()
        assert [x.name for x in run.bases()] == ["1", "3"]
        assert [x.note.step for x in run.deltas()] == [4, 5]
        run.publish()
        run.publisher.end(run.state)
        assert [x.name for x in run.bases()] == ["3", "5"], "two are kept"
        assert not (models / "1.deltas").exists()
        assert [x.note.step for x in run.deltas()] == [6]
        expected = files_in(run.exported(tmp_path / "expected", "int8"))
    assert files_in(compacted(models)) == expected
    assert run.said == [run.said[0]], "of the first base"


def test_a_full_disk_is_told_of_and_loses_no_row(tmp_path: Path):
    with run_of(tmp_path, share=1e9) as run:
        run.begin()
        with largest_file(1000):
            run.publish()
        assert "warning: publish: step 1 isn't published: cannot write " in run.said[-1]
        assert run.bases() == []
        run.publish()
        with largest_file(1000):
            run.publish()
        assert "step 3 isn't published: cannot write " in run.said[-1]
        assert run.deltas() == []
        run.publish()
        assert [x.note.step for x in run.deltas()] == [4]
        expected = files_in(run.exported(tmp_path / "expected"))
    assert files_in(compacted(tmp_path / "models")) == expected


@pytest.mark.parametrize("damage", ["torn", "lost", "foreign"])
def test_a_damaged_chain_is_followed_by_a_new_base(damage: str, tmp_path: Path):
    with run_of(tmp_path, share=1e9) as run:
        run.begin()
        for _ in range(4):
            run.publish()
        state, deltas = run.arrays(), tmp_path / "models" / "1.deltas"
    if damage == "torn":
        path = deltas / "000002" / "rows.bytes"
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "lost":
        shutil.rmtree(deltas / "000002")
    else:
        shutil.rmtree(deltas / "000001")
        shutil.copytree(deltas / "000002", deltas / "000001")
    with run_of(tmp_path) as run:
        run.begin(state)
        assert "warning: publish: a new base follows: " in run.said[0]
        run.publish()
        assert [x.name for x in run.bases()] == ["1", "5"]
        assert files_in(run.bases()[-1]) == files_in(run.exported(tmp_path / "expected"))


def test_deltas_without_a_base_are_deleted(tmp_path: Path):
    models = tmp_path / "models"
    wanted = ["1", "1.deltas", "publishing.json", "publishing.lock"]
    with run_of(tmp_path, share=1e9) as run:
        run.begin()
        for _ in range(4):
            run.publish()
        published = newest(models)
        assert published
        assert len(list(published.chain.rest())) == 3
        (models / "1.deltas" / "000003" / "rows.bytes").unlink()
        with pytest.raises(UserError, match=r"cannot write .*000002"):
            compact(published, 1, threading.Lock(), lambda _: None)
        assert sorted(x.name for x in models.iterdir()) == wanted, "of a new base that failed"
    shutil.copytree(models / "1.deltas", models / "2.deltas")  # of one that was killed
    (models / "notes.deltas").mkdir()
    with run_of(tmp_path):
        assert sorted(x.name for x in models.iterdir()) == [
            *wanted[:2], "notes.deltas", *wanted[2:],
        ]  # fmt: skip


def test_a_damaged_base_isnt_gone_on_with(tmp_path: Path):
    """Not all of its files are compared with the state: layers come with each delta."""
    with run_of(tmp_path) as run:
        run.begin()
        run.publish()
        state = run.arrays()
    _flip(tmp_path / "models" / "1" / "golden" / "ids.npy")
    with run_of(tmp_path) as run:
        run.begin(state)
        (line,) = run.said
        assert "a new base follows: " in line
        assert "golden/ids.npy: expected the checksum" in line


@pytest.mark.parametrize(
    ("file", "is_lost"),
    [
        ("tables/C2.rows", False),
        ("golden/ids.npy", False),
        ("tables/C2.rows", True),
        ("manifest.json", True),
    ],
)
def test_a_damaged_base_isnt_made_a_new_one(
    file: str, is_lost: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with run_of(tmp_path, deltas=2, share=1e9) as run:
        run.begin()
        run.publish()
        path = tmp_path / "models" / "1" / file
        path.unlink() if is_lost else _flip(path)
        for _ in range(2):
            run.publish()
        run.publisher.end(run.state)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("warning: publish: a new base of the whole state follows: ")
        reason = "it is missing" if is_lost else "expected the checksum"
        assert f"1 is damaged: {file}: {reason}" in line
        assert [x.name for x in run.bases()][-1] == "3"
        assert files_in(run.bases()[-1]) == files_in(run.exported(tmp_path / "expected"))


def test_a_base_that_is_deleted_is_followed_by_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with run_of(tmp_path, deltas=2, share=1e9) as run:
        run.begin()
        run.publish()
        shutil.rmtree(tmp_path / "models" / "1")
        for _ in range(2):
            run.publish()
        run.publisher.end(run.state)
        assert "1 is damaged: " in capsys.readouterr().err
        assert [x.name for x in run.bases()] == ["3"]
        assert files_in(run.bases()[-1]) == files_in(run.exported(tmp_path / "expected"))


def test_a_disk_that_stays_full_is_told_of_once_and_at_the_end(tmp_path: Path):
    with run_of(tmp_path, share=1e9) as run:
        run.begin()
        run.publish()
        with largest_file(1000):
            for _ in range(3):
                run.publish()
            run.publisher.end(run.state)
        assert len(run.said) == 2, "the base, and one warning"
        state = run.arrays()
    assert len(run.said) == 3
    assert "the last state, of step 4, isn't published: cannot write " in run.said[-1]
    assert f"export --run={tmp_path / 'run'} --output=NAME" in run.said[-1]
    with run_of(tmp_path, share=1e9) as run:  # the same command, which has no step left
        run.begin(state)
        run.publisher.end(run.state)
        assert [x.note.step for x in run.deltas()] == [4]
    assert run.said == [f"publish: goes on after step 1 in {tmp_path / 'models'}"]


def test_a_run_that_is_stopped_says_that_its_last_state_isnt_published(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), run_of(tmp_path) as run:  # noqa: PT012
        run.begin()
        run.publish()
        run.train(1)
        raise KeyboardInterrupt
    assert "of step 2, isn't published: the run has ended before; the same" in run.said[-1]


def _flip(path: Path) -> None:
    """Changes the last bit of a file."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_another_model_gets_a_new_base(tmp_path: Path):
    with run_of(tmp_path) as run:
        run.begin()
        run.publish()
        state = run.arrays()
    with run_of(tmp_path, "int4") as run:
        run.begin(state)
        assert "is of another model; a new base follows" in run.said[0]
        run.publish()
        assert [x.name for x in run.bases()] == ["1", "2"]


def test_an_earlier_step_is_refused_of_another_model_only(tmp_path: Path):
    with run_of(tmp_path) as run:
        run.begin()
        run.train(2)
        run.publish()
    expected = r"expected a run at step 3 or later, .* got step 0, and .* step 3 of another model"
    with run_of(tmp_path, "int4") as run, pytest.raises(UserError, match=expected):
        run.begin()
    with run_of(tmp_path) as run:  # killed before its first checkpoint
        run.begin()
        assert "goes on after step 3" in run.said[0]
        run.train(3)
        run.publish()
        assert [x.name for x in run.bases()] == ["3"]
        assert [x.note.step for x in run.deltas()] == [4]


@pytest.mark.parametrize("is_noted", [True, False])
def test_a_run_that_is_begun_anew_is_another_one(is_noted: bool, tmp_path: Path):
    models, checkpoints = tmp_path / "models", tmp_path / "run" / "checkpoints"
    with run_of(tmp_path) as run:
        run.begin()
        run.train(1)
        state = run.arrays()
        run.publish()
        run.publish()
        last = run.arrays()
    if not is_noted:  # by an earlier version
        (models / "publishing.json").unlink(missing_ok=True)
    shutil.rmtree(checkpoints, ignore_errors=True)
    before = files_in(models)
    expected = r"expected a run at step 3 or later, .* got step 0, and .* step 3 of another run"
    for _ in range(2):
        with run_of(tmp_path) as run, pytest.raises(UserError, match=expected):
            run.begin()
    assert files_in(models) == before
    assert not run.said
    with run_of(tmp_path) as run:
        if is_noted:
            with pytest.raises(UserError, match="got step 1"):
                run.begin(state)
        else:  # it has a checkpoint
            run.begin(state)
    with run_of(tmp_path, config=dataclasses.replace(CONFIG, learning_rate=0.5)) as run:
        run.begin(last)
        run.publish()
        assert [x.note.step for x in run.deltas()] == [3, 4]
    with run_of(tmp_path) as run:
        run.begin(state)  # of this run now
        assert "goes on after step 4" in run.said[0]


@pytest.mark.parametrize(
    ("settings", "change", "reason"),
    [
        ({"row_format": "int4"}, None, "is of another model"),
        ({}, "rows", "another state of step 2 is published"),
        ({}, "damage", "models/2 is damaged"),
    ],
)
def test_a_last_state_that_isnt_published_is_told_of(
    settings: Any, change: str | None, reason: str, tmp_path: Path
):
    with run_of(tmp_path) as run:
        run.begin()
        run.train(1)
        run.publish()
        state = run.arrays()
    with run_of(tmp_path) as run:
        run.begin(state)
        run.publisher.end(run.state)
    assert len(run.said) == 1, "it is published"
    if change == "rows":
        state[1]["C2"]["table"] = state[1]["C2"]["table"] + 1
    elif change == "damage":
        _flip(tmp_path / "models" / "2" / "golden" / "ids.npy")
    with run_of(tmp_path, **settings) as run:
        run.begin(state)
        run.publisher.end(run.state)
    assert "the last state, of step 2, isn't published: " in run.said[-1]
    assert reason in run.said[-1]
    with run_of(tmp_path, **settings) as run:
        run.begin(state)
        run.publish()
        run.publisher.end(run.state)
    assert "isn't published" not in run.said[-1]


@pytest.mark.parametrize("is_name", [True, False])
def test_another_name_or_an_upgrade_goes_on_with_a_new_base(
    is_name: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with run_of(tmp_path) as run:
        run.begin()
        run.train(1)
        state = run.arrays()
        run.publish()
        run.publish()
    if not is_name:
        monkeypatch.setattr(serving_export, "made_by", lambda: {"numpy": "9.9.9"})
    with run_of(tmp_path, name="other" if is_name else "small") as run:
        run.begin(state)
        assert "2 has another name or versions; a new base follows" in run.said[0]
        run.publish()
        run.publish()
        assert [x.name for x in run.bases()] == ["2"], "step 3 is published already"
        run.publish()
        assert [x.name for x in run.bases()] == ["2", "4"]
        published = newest(tmp_path / "models")
        assert published
        assert (published.manifest.name == "other") is is_name
        assert (published.manifest.made_by == {"numpy": "9.9.9"}) is not is_name


def test_a_directory_of_others_is_refused(tmp_path: Path):
    (tmp_path / "models" / "1").mkdir(parents=True)
    with pytest.raises(UserError, match="expected a new directory, or one that"), run_of(tmp_path):
        pass
    shutil.rmtree(tmp_path / "models")
    with run_of(tmp_path), pytest.raises(UserError, match="in use by another"), run_of(tmp_path):
        pass


@pytest.mark.parametrize("name", ["run", "run/checkpoints", "."])
def test_a_directory_of_the_run_is_refused(name: str, tmp_path: Path):
    refused = pytest.raises(UserError, match="expected a directory apart from the workdir")
    with refused, run_of(tmp_path, directory=tmp_path / name):
        pass
    assert not list(tmp_path.rglob("publishing.lock"))


def test_only_artifacts_named_by_steps_are_bases(tmp_path: Path):
    """What else has a decimal name is never deleted, such as a checkpoint."""
    with run_of(tmp_path) as run:
        run.begin()
        run.publish()
    models = tmp_path / "models"
    shutil.copytree(models / "1", models / "00000009")
    (models / "7").mkdir()
    assert run.bases() == [models / "1"]


def test_numbers_that_are_not_finite_are_not_published(tmp_path: Path):
    with run_of(tmp_path) as run:
        run.begin()
        run.publish()
        params = run.state.params
        run.state = dataclasses.replace(run.state, params={**params, "top": _nan(params["top"])})
        run.publisher.step_done(run.state, 2)
        run.now += 1000
        assert run.publisher.step_done(run.state, 3)
        run.settle()
        assert "step 3 isn't published: expected finite numbers, layer top" in run.said[-1]
        assert run.deltas() == []


def _nan(tree: Any) -> Any:
    return {k: _nan(v) for k, v in tree.items()} if isinstance(tree, dict) else tree * float("nan")
