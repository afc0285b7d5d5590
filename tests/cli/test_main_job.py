"""The main job as a user runs it: in processes of its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from criteo_lines import realistic
from main_job import ROOT, SMALL, arrays, fails, losses, run, succeed, summary


def test_summary_and_files(unbroken: Path):
    result = summary(unbroken)
    assert result["mesh"] == "2x4"
    assert result["steps"] == 40
    assert result["batch_size"] == 64
    assert result["resumed_from"] is None
    assert result["examples_per_second"] > 0
    assert 0.7 < result["teacher_auc"] < 0.9
    for split, examples in (("train", 800), ("validation", 800), ("test", 800)):
        metrics = result[split]
        assert metrics["examples"] == examples
        names = ("log_loss", "auc", "normalized_entropy", "accuracy", "calibration")
        assert all(np.isfinite(metrics[name]) for name in names)
    assert list(losses(unbroken)) == list(range(1, 41))


def test_a_module_may_use_jax_as_it_is_imported(tmp_path: Path):
    """The devices of the mesh are asked for before."""
    (tmp_path / "of_arrays.py").write_text(
        "import jax.numpy as jnp\n"
        "from dlrm_jax.models.dlrm import DLRM\n"
        "ONES = jnp.ones(3)\n"
        "class Mine(DLRM): ...\n"
    )
    flags = ("--mesh=1x2", *SMALL, "--model=of_arrays:Mine", "--workdir=of_arrays.py")
    result = run(*flags, cwd=tmp_path)
    # Everything before is done, the learner on two devices included.
    assert result.stderr.startswith("error: workdir of_arrays.py: expected a directory, got a file")


def test_tables_on_disk_are_logical(unbroken: Path):
    found = arrays(unbroken, 40)
    assert found["/C2/table"].shape == (3000, 8)
    assert found["/C2/accumulator"].shape == (3000,)
    assert found["/C4/table"].shape == (500, 8)


@pytest.mark.thorough  # by default `test_from_train_to_curl.py` trains on a log
def test_rows_with_the_oddities_of_real_ones(tmp_path: Path):
    log = tmp_path / "train.txt"
    log.write_text(realistic(840))
    flags = ("--mesh=1x1", f"--data={log}", "--batch_size=64", "--top_mlp=16,1")
    succeed(*flags, f"--workdir={tmp_path / 'run'}")
    result = summary(tmp_path / "run")
    assert result["steps"] == 720 // 64  # six of seven days
    for split, examples in (("train", 60), ("validation", 60), ("test", 60)):
        assert all(np.isfinite(value) for value in result[split].values())
        assert result[split]["examples"] == examples
    assert result["teacher_auc"] is None


@pytest.mark.thorough
def test_best_checkpoint_and_target(tmp_path: Path):
    flags = [flag for flag in SMALL if not flag.startswith("--eval_every")]
    flags += ["--eval_every=5", "--steps=40", "--keep_checkpoints=1", "--checkpoint_every=0"]
    succeed("--mesh=1x1", *flags, f"--workdir={tmp_path}")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    validation = {x["step"]: x["auc"] for x in lines if x["split"] == "validation"}
    best = max(validation, key=lambda step: validation[step])
    assert summary(tmp_path)["best_step"] == best
    assert summary(tmp_path)["validation"]["auc"] == validation[best]
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {best, 40}
    files = [tmp_path / name for name in ("metrics.jsonl", "summary.json")]
    before = [path.read_text() for path in files]
    placed = next(flag for flag in flags if flag.startswith("--placements="))
    said = succeed("--eval_only", "--checkpoint=best", placed, f"--workdir={tmp_path}")
    assert f"restoring step {best} from" in said
    assert [path.read_text() for path in files] == before
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["validation"]["auc"] == validation[best]
    other = tmp_path / "target"
    target = f"--target_auc={validation[5]}"
    for _ in range(2):  # run again, it doesn't train on
        succeed("--mesh=1x1", *flags, target, f"--workdir={other}")
        assert summary(other)["steps"] == 5


@pytest.mark.thorough
def test_warm_start(unbroken: Path, tmp_path: Path):
    source = unbroken  # a checkpoint, and checkpoints/, mean the same
    other = [flag for flag in SMALL if not flag.startswith("--top_mlp")]
    flags = ("--mesh=1x1", *other, "--top_mlp=4,1", "--steps=1", "--learning_rate=1e-30")
    names = "--warm_start_names=C2,bottom"
    succeed(*flags, f"--warm_start={source}", names, f"--workdir={tmp_path / 'a'}")
    expected, found = arrays(unbroken, 40), arrays(tmp_path / "a", 1)
    np.testing.assert_array_equal(found["/C2/table"], expected["/C2/table"])
    assert np.any(found["/C4/table"] != expected["/C4/table"])
    layers = [name for name in expected if name.startswith("/params/bottom")]
    assert layers
    for name in layers:
        np.testing.assert_array_equal(found[name], expected[name])

    directory = tmp_path / "arrays"
    directory.mkdir()
    np.save(directory / "C3.npy", np.full((40, 8), 2.0, np.float32))
    succeed(
        *flags, f"--warm_start={directory}", "--warm_start_names=C3", f"--workdir={tmp_path / 'b'}"
    )
    assert np.all(arrays(tmp_path / "b", 1)["/C3/table"] == 2)

    fails("/dev/null", *flags, "--workdir=/dev/null/x")
    warm = (f"--warm_start={source}", f"--workdir={tmp_path / 'c'}")
    fails("differ: top_mlp is 8,1 there and 4,1 here", *flags, *warm, "--warm_start_names=top")
    fails("'C9'", *flags, *warm, "--warm_start_names=C9")


def test_without_workdir_a_new_one_is_made_where_the_user_stands(tmp_path: Path):
    result = run("--mesh=1x1", *SMALL, "--steps=3", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert result.returncode == 0, result.stderr[-2000:]
    (workdir,) = (tmp_path / "runs").iterdir()
    assert f"runs/{workdir.name}/summary.json" in result.stdout
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["00000003"]
