"""Damaged checkpoints are set aside, whatever is wrong with them, and earlier ones are used."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from saved_run import CONFIG, DATA, STEPS, save, train_and_save

from dlrm_jax.errors import DamagedCheckpointError, UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.mesh import make_mesh
from dlrm_jax.training import checkpoint, orbax_io
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.warm_start import warm_start

BEFORE = STEPS - 2


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Learner, TrainState, Path]:
    """A learner, its state after the last step, and a workdir with checkpoints of two steps."""
    workdir = tmp_path_factory.mktemp("begun")
    learner, state, _ = train_and_save(workdir, "1x2")
    save(workdir, learner, dataclasses.replace(state, step=jax.numpy.array(BEFORE)))
    return learner, state, workdir


@pytest.fixture
def checkpoints(begun: tuple[Learner, TrainState, Path], tmp_path: Path) -> Checkpoints:
    shutil.copytree(begun[2], tmp_path, dirs_exist_ok=True)
    return Checkpoints(tmp_path / "checkpoints", {"data": DATA, **CONFIG.identity()})


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.directory.iterdir())


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def forget_files(checkpoint: Path) -> None:
    """Makes the metadata those of a version that didn't note which files there are."""
    path = checkpoint / "metadata.json"
    metadata = json.loads(path.read_text())
    del metadata["files"]
    path.write_text(json.dumps(metadata))


def only(checkpoint: Path, pattern: str) -> Path:
    (found,) = checkpoint.glob(pattern)
    return found


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty metadata": lambda path: (path / "metadata.json").write_text(""),
    "truncated metadata": lambda path: truncate(path / "metadata.json"),
    "no metadata": lambda path: (path / "metadata.json").unlink(),
    "truncated array": lambda path: truncate(only(path, "tables/0/state/ocdbt.process_0/d/*")),
    "no array": lambda path: only(path, "tables/0/state/ocdbt.process_0/d/*").unlink(),
    "no tables": lambda path: shutil.rmtree(path / "tables"),
    "empty description": lambda path: (path / "dense/state/_METADATA").write_text(""),
    "changed description": lambda path: change(path / "dense/state/_METADATA"),
}


# Known from notes in the metadata alone, or tried without them anyway.
_NOTED = ("truncated array", "changed description")


def change(path: Path) -> None:
    """Changes one byte, so that the size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "noted"),
    [
        *((damage, True) for damage in DAMAGES),
        ("truncated array", False),  # as the metadata of earlier versions, which noted no files
        *(pytest.param(x, False, marks=pytest.mark.thorough) for x in DAMAGES if x not in _NOTED),
    ],
)
def test_the_latest_whole_one_is_restored(
    begun: tuple[Learner, TrainState, Path],
    checkpoints: Checkpoints,
    damage: str,
    noted: bool,
    caplog: pytest.LogCaptureFixture,
):
    latest = checkpoints.directory / f"{STEPS:08d}"
    if not noted:
        forget_files(latest)
    DAMAGES[damage](latest)
    state, step = checkpoints.restore_latest(begun[0])
    assert step == int(state.step) == BEFORE
    assert names(checkpoints) == [f"{BEFORE:08d}", f"{STEPS:08d}.damaged"]
    assert f"checkpoint {latest} is damaged: " in caplog.text
    assert f"it is {latest.name}.damaged now" in caplog.text


def test_the_step_is_saved_again_and_may_be_damaged_again(
    begun: tuple[Learner, TrainState, Path], checkpoints: Checkpoints
):
    learner, state, _ = begun
    for count in (1, 2):
        truncate(checkpoints.directory / f"{STEPS:08d}" / "metadata.json")
        checkpoints.save(learner, state, {}, None)
        assert len(names(checkpoints)) == 2 + count
    assert names(checkpoints)[2:] == [f"{STEPS:08d}.damaged", f"{STEPS:08d}.damaged.2"]
    restored, step = checkpoints.restore_latest(learner)
    assert step == STEPS
    np.testing.assert_array_equal(restored.params["top"]["layers"][0]["bias"],
                                  state.params["top"]["layers"][0]["bias"])  # fmt: skip


def test_a_damaged_old_one_does_not_end_a_save(
    begun: tuple[Learner, TrainState, Path], checkpoints: Checkpoints
):
    learner, state, _ = begun
    truncate(checkpoints.directory / f"{BEFORE:08d}" / "metadata.json")
    assert checkpoints.best() is None
    assert checkpoints.improves({"auc": 0.6})
    later = dataclasses.replace(state, step=jax.numpy.array(STEPS + 1))
    checkpoints.save(learner, later, {}, {"auc": 0.6})
    assert checkpoints.best() == STEPS + 1
    # Two whole ones are kept: the damaged one doesn't count as one of them.
    assert names(checkpoints) == [f"{BEFORE:08d}.damaged", f"{STEPS:08d}", f"{STEPS + 1:08d}"]
    by_loss = dataclasses.replace(checkpoints, best_metric="log_loss")
    with pytest.raises(UserError, match=r"best_metric: expected a metric of .*, auc; got log_loss"):
        by_loss.restore_best(learner)


@pytest.mark.skipif(sys.platform != "linux", reason="finds names of files in /proc")
def test_all_is_on_disk_before_the_name_is(
    begun: tuple[Learner, TrainState, Path], checkpoints: Checkpoints,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """What a power cut leaves has its name only if it is whole. TensorStore flushes by itself."""
    learner, state, _ = begun
    flushed, fsync, replace = [], os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    def noted_replace(path: Path, target: Path) -> Path:
        assert {path, *path.rglob("*")} <= set(flushed)
        replace(path, target)
        flushed.clear()
        return target

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    later = dataclasses.replace(state, step=jax.numpy.array(STEPS + 1))
    checkpoints.save(learner, later, {}, None)
    assert checkpoints.directory in flushed
    assert checkpoints.steps()[-1] == STEPS + 1


def test_a_checkpoint_under_the_name_of_another_step_is_not_used(checkpoints: Checkpoints):
    latest = checkpoints.directory / f"{STEPS:08d}"
    copy = shutil.copytree(latest, latest.with_name("00000099"))
    with pytest.raises(UserError, match=f"00000099 is of step {STEPS}; give it the name"):
        read_metadata(copy)
    before = names(checkpoints)
    assert checkpoints.best() != 99
    assert names(checkpoints) == before


def test_a_file_that_cannot_be_read_just_now_is_not_damaged(
    checkpoints: Checkpoints, begun: tuple[Learner, TrainState, Path],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    def refuse(*_: object) -> None:
        raise ValueError("Input/output error [tensorstore_spec='{}']")

    monkeypatch.setattr(orbax_io.ocp, "load", refuse)
    before = names(checkpoints)
    with pytest.raises(
        UserError, match=r"cannot read the checkpoint .*: .*Input/output error; try"
    ):
        checkpoints.restore_latest(begun[0])
    assert names(checkpoints) == before


def test_rows_that_are_not_finite_are_not_saved(
    begun: tuple[Learner, TrainState, Path], checkpoints: Checkpoints
):
    learner, state, _ = begun
    tables = dict(state.embedding.tables)
    name = next(iter(tables))
    tables[name] = tables[name].at[0, 0].set(np.inf)
    bad = dataclasses.replace(state, embedding=dataclasses.replace(state.embedding, tables=tables))
    bad = dataclasses.replace(bad, step=jax.numpy.array(STEPS + 1))
    before = names(checkpoints)
    with pytest.raises(UserError, match=r"the rows of table C\d aren't finite, so this step isn't"):
        checkpoints.save(learner, bad, {}, None)
    assert names(checkpoints) == before


def test_without_a_whole_one_all_stay(
    begun: tuple[Learner, TrainState, Path], checkpoints: Checkpoints
):
    for step in (BEFORE, STEPS):
        truncate(checkpoints.directory / f"{step:08d}" / "metadata.json")
    before = names(checkpoints)
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole \(0000000.*0000000"):
        checkpoints.restore_latest(begun[0])
    assert names(checkpoints) == before


def test_another_runs_is_not_damaged(
    begun: tuple[Learner, TrainState, Path], checkpoints: Checkpoints
):
    path = checkpoints.directory / f"{STEPS:08d}" / "metadata.json"
    metadata = json.loads(path.read_text())
    path.write_text(json.dumps(metadata | {"identity": {"data": "other"}}))
    before = names(checkpoints)
    message = r'is of another run: it was trained on other data .*"other"'
    with pytest.raises(UserError, match=message) as caught:
        checkpoints.restore_latest(begun[0])
    assert not isinstance(caught.value, DamagedCheckpointError)
    assert str(caught.value).endswith("or another workdir")  # no flag of a program that isn't this
    assert names(checkpoints) == before


def test_another_models_is_not_damaged(
    begun: tuple[Learner, TrainState, Path], checkpoints: Checkpoints
):
    """Of a version of optax with another state, say."""
    specs = begun[0].state_specs()
    other = dataclasses.replace(specs, optimizer=(specs.optimizer, specs.step))
    learner = begun[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, "state_specs", lambda: other)
        with pytest.raises(UserError, match=r"is of another model: optimizer\.7 has no such array"):
            checkpoints.restore_latest(learner)
    assert names(checkpoints) == [f"{BEFORE:08d}", f"{STEPS:08d}"]


@pytest.mark.parametrize("damage", ["truncated metadata", "no array", "no tables"])
def test_one_that_is_named_is_an_error(
    begun: tuple[Learner, TrainState, Path], checkpoints: Checkpoints, damage: str
):
    path = checkpoints.directory / f"{STEPS:08d}"
    DAMAGES[damage](path)
    for use in (
        lambda: Predictor.load(path, make_mesh("1x1")),
        lambda: warm_start(begun[0], 0, path, ["C1"], None),
        lambda: checkpoints.restore(begun[0], STEPS),
    ):
        with pytest.raises(DamagedCheckpointError, match=f"{path} is damaged: .*; give another"):
            use()
    assert path.is_dir()


def test_one_process_alone_uses_no_earlier_checkpoint(
    begun: tuple[Learner, TrainState, Path], checkpoints: Checkpoints,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """The others read the latest one together, and would wait for it."""
    latest = checkpoints.directory / f"{STEPS:08d}"
    noted = (latest / "metadata.json").read_text()
    forget_files(latest)  # else process 0 would see it beforehand
    manifest = latest / "dense/state/manifest.ocdbt"
    manifest.write_bytes(bytes(manifest.stat().st_size))
    before = names(checkpoints)
    monkeypatch.setattr(checkpoint, "is_distributed", lambda: True)
    with pytest.raises(UserError, match=r"in process 0: .*; see that all processes can read it"):
        checkpoints.restore_latest(begun[0])
    assert names(checkpoints) == before
    (latest / "metadata.json").write_text(noted)
    manifest.unlink()  # which all learn from process 0 before they read
    assert checkpoints.restore_latest(begun[0])[1] == BEFORE


@pytest.mark.thorough
def test_any_byte_may_be_wrong(begun: tuple[Learner, TrainState, Path], checkpoints: Checkpoints):
    """Whatever is changed, cut off or missing, the answer is the state that was saved or an error.

    The metadata of a checkpoint has no hash of its own.
    """
    chance, latest = random.Random(0), checkpoints.directory / f"{STEPS:08d}"
    wanted = [np.array(x) for x in jax.tree.leaves(checkpoints.restore(begun[0], STEPS))]
    files = [x for x in sorted(latest.rglob("*")) if x.is_file() and x.name != "metadata.json"]
    errors = []
    for _ in range(200):
        path = chance.choice(files)
        whole = path.read_bytes()
        content = bytearray(whole)
        if content and chance.random() < 0.7:
            content[chance.randrange(len(content))] = chance.randrange(256)
        if chance.random() < 0.3:
            content = content[: chance.randint(0, len(content))]
        path.write_bytes(content)
        try:
            found = checkpoints.restore(begun[0], STEPS)
        except UserError as error:
            errors.append(str(error))
        else:
            for x, saved in zip(jax.tree.leaves(found), wanted, strict=True):
                np.testing.assert_array_equal(x, saved)
        path.write_bytes(whole)
    assert len(errors) > 50
    assert not [error for error in errors if "\n" in error]
