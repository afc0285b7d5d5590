"""Who publishes: other runs, models and versions, and directories of others."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from publishing_run import files_in, flip, run_of
from saved_run import CONFIG

from dlrm_jax.errors import UserError
from dlrm_jax.publishing.published import newest
from dlrm_jax.serving import export as serving_export


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


@pytest.mark.parametrize("is_noted", [True, pytest.param(False, marks=pytest.mark.thorough)])
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
        ({}, "rows", "another state of step 2 is published"),
        pytest.param(
            {"row_format": "int4"}, None, "is of another model", marks=pytest.mark.thorough
        ),
        pytest.param({}, "damage", "models/2 is damaged", marks=pytest.mark.thorough),
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
        flip(tmp_path / "models" / "2" / "golden" / "ids.npy")
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


@pytest.mark.parametrize("is_name", [True, pytest.param(False, marks=pytest.mark.thorough)])
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
        run.publisher.step_done(run.state, 2, False)
        run.now += 1000
        assert run.publisher.step_done(run.state, 3, run.publisher.is_due(3))
        run.settle()
        assert "step 3 isn't published: expected finite numbers, layer top" in run.said[-1]
        assert run.deltas() == []


def _nan(tree: Any) -> Any:
    return {k: _nan(v) for k, v in tree.items()} if isinstance(tree, dict) else tree * float("nan")
