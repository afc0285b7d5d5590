"""What is saved, and gone on from, whatever ended a run."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from event_files import scalars
from main_job import SMALL, arrays, in_background, losses, run, succeed, summary


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of half the steps of `unbroken`."""
    workdir = tmp_path_factory.mktemp("half")
    succeed("--mesh=2x4", *SMALL, "--steps=20", f"--workdir={workdir}")
    return workdir


@pytest.mark.thorough
def test_resumed_run_equals_an_unbroken_one_bit_for_bit(unbroken: Path, half: Path, tmp_path: Path):
    shutil.copytree(half, tmp_path, dirs_exist_ok=True)
    succeed("--mesh=2x4", *SMALL, "--steps=40", f"--workdir={tmp_path}")
    assert summary(tmp_path)["resumed_from"] == 20
    assert losses(tmp_path) == losses(unbroken)
    expected, found = arrays(unbroken, 40), arrays(tmp_path, 40)
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.thorough  # by default `test_checksums.py` restores on another
def test_resume_on_other_meshes(unbroken: Path, half: Path, tmp_path: Path):
    shutil.copytree(half, tmp_path, dirs_exist_ok=True)
    for mesh, steps in (("1x8", 30), ("1x1", 40)):
        succeed(f"--mesh={mesh}", *SMALL, f"--steps={steps}", f"--workdir={tmp_path}")
    for split in ("train", "validation", "test"):
        difference = summary(tmp_path)[split]["log_loss"] - summary(unbroken)[split]["log_loss"]
        assert abs(difference) < 1e-5


# experiments.campaigns.kills tries it at many instants.
@pytest.mark.parametrize("kills", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_killed_at_random_times(unbroken: Path, tmp_path: Path, kills: int):
    flags = ("--mesh=2x4", *SMALL, "--steps=40", "--checkpoint_every=3", "--tensorboard")
    flags += (f"--workdir={tmp_path}",)
    chance = random.Random(0)
    checkpoints = tmp_path / "checkpoints"
    for _ in range(kills):
        before = {path.name for path in checkpoints.iterdir()} if checkpoints.exists() else set()
        with in_background(*flags) as process:
            # Once it saves something new, soon afterwards: within a save as likely as between two.
            deadline = time.monotonic() + 120
            while process.returncode is None and time.monotonic() < deadline:
                if checkpoints.exists() and {p.name for p in checkpoints.iterdir()} - before:
                    time.sleep(chance.uniform(0, 0.4))
                    break
                time.sleep(0.01)
    succeed(*flags)
    assert losses(tmp_path) == losses(unbroken)
    shown = scalars(tmp_path / "tensorboard")
    assert shown["train/loss"] == list(losses(unbroken).items())
    assert [step for step, _ in shown["test/auc"]] == [40]
    assert not [p for p in checkpoints.iterdir() if not p.name.isdecimal()]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.thorough)],
)
def test_signals_save(tmp_path: Path, number: signal.Signals, code: int):
    flags = (
        "--mesh=1x1",
        *SMALL,
        "--steps=1000000",
        "--checkpoint_every=0",
        "--tensorboard",
        f"--workdir={tmp_path}",
    )
    metrics = tmp_path / "metrics.jsonl"
    with in_background(*flags) as process:
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        busy = run(*flags)  # meanwhile, the workdir is taken
        assert busy.returncode == 2
        assert "in use by another run" in busy.stderr
        result = process.end(number)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    (step,) = (int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert step == max(losses(tmp_path))
    assert [shown for shown, _ in scalars(tmp_path / "tensorboard")["train/loss"]][-1] == step


def test_full_disk_leaves_no_half_checkpoint(tmp_path: Path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); "
    no_cache = "import jax; jax.config.update('jax_enable_compilation_cache', False); "
    start = "from dlrm_jax.cli.main import main; main('train')"
    flags = ("--mesh=1x1", *SMALL, "--steps=3", f"--workdir={tmp_path}")
    result = run(*flags, program=("-c", limit + no_cache + start))
    assert result.returncode == 2, result.stderr[-2000:]
    assert "error: cannot write the checkpoint" in result.stderr
    # Threads of Orbax may write on after one of them has failed, into what the next run sweeps.
    left = [x.name for x in (tmp_path / "checkpoints").iterdir()]
    assert left in ([], [".00000003.dlrm_jax"])
