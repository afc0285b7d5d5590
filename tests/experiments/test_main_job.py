"""The main job as a user runs it: in processes of its own."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT.parent / "shared" / "data" / "criteo_sample" / "train.txt"

SMALL = (
    "--table_rows=7,3000,40,500",
    "--examples=8000",
    "--embedding_dim=8",
    "--bottom_mlp=8",
    "--top_mlp=8,1",
    "--batch_size=64",
    "--evaluation_batch_size=512",
    "--log_every=1",
    "--eval_every=0",
    "--placements=C2=row_wise,C3=replicated,C4=table_wise",
)


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "experiments.criteo", *flags]


def environment() -> dict[str, str]:
    without = {"XLA_FLAGS"}
    return {key: value for key, value in os.environ.items() if key not in without}


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*flags),
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def succeed(*flags: str) -> str:
    result = run(*flags)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def summary(workdir: Path) -> dict:
    return json.loads((workdir / "summary.json").read_text())


def losses(workdir: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["split"] == "train"]
    assert steps == sorted(set(steps)), "a step was recorded twice"
    return {line["step"]: line["loss"] for line in lines if line["split"] == "train"}


def arrays(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, read with Orbax alone."""
    path = workdir / "checkpoints" / f"{step:08d}"
    found = {}
    for item in [path / "dense", *sorted((path / "tables").iterdir())]:

        def visit(prefix: str, tree: object) -> None:
            if isinstance(tree, dict):
                for key, value in tree.items():
                    visit(f"{prefix}/{key}", value)
            else:
                found[prefix] = np.asarray(tree)

        metadata = ocp.metadata(str(item)).metadata
        as_numpy = _map(lambda leaf: np.empty(leaf.shape, leaf.dtype), metadata)
        visit("", ocp.load(str(item), as_numpy))
    return found


def _map(function, tree):
    if isinstance(tree, dict):
        return {key: _map(function, value) for key, value in tree.items()}
    return function(tree)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("unbroken")
    succeed("--mesh=2x4", *SMALL, "--steps=40", f"--workdir={workdir}")
    return workdir


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


def test_tables_on_disk_are_logical(unbroken: Path):
    found = arrays(unbroken, 40)
    assert found["/C2/weights"].shape == (3000, 8)
    assert found["/C2/accumulator"].shape == (3000,)
    assert found["/C4/weights"].shape == (500, 8)


def test_resumed_run_equals_an_unbroken_one_bit_for_bit(unbroken: Path, tmp_path: Path):
    succeed("--mesh=2x4", *SMALL, "--steps=20", f"--workdir={tmp_path}")
    succeed("--mesh=2x4", *SMALL, "--steps=40", f"--workdir={tmp_path}")
    assert summary(tmp_path)["resumed_from"] == 20
    assert losses(tmp_path) == losses(unbroken)
    expected, found = arrays(unbroken, 40), arrays(tmp_path, 40)
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_resume_on_other_meshes(unbroken: Path, tmp_path: Path):
    for mesh, steps in (("2x4", 20), ("1x8", 30), ("1x1", 40)):
        succeed(f"--mesh={mesh}", *SMALL, f"--steps={steps}", f"--workdir={tmp_path}")
    for split in ("train", "validation", "test"):
        difference = summary(tmp_path)[split]["log_loss"] - summary(unbroken)[split]["log_loss"]
        assert abs(difference) < 1e-5


def test_killed_at_random_times(unbroken: Path, tmp_path: Path):
    flags = ("--mesh=2x4", *SMALL, "--steps=40", "--checkpoint_every=3", f"--workdir={tmp_path}")
    chance = random.Random(0)
    checkpoints = tmp_path / "checkpoints"
    for _ in range(3):
        before = {path.name for path in checkpoints.iterdir()} if checkpoints.exists() else set()
        process = subprocess.Popen(
            command(*flags),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        # Once it saves something new, soon afterwards: within a save as likely as between two.
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if checkpoints.exists() and {p.name for p in checkpoints.iterdir()} - before:
                time.sleep(chance.uniform(0, 0.4))
                break
            time.sleep(0.01)
        process.kill()
        process.wait()
    succeed(*flags)
    assert losses(tmp_path) == losses(unbroken)
    assert not [p for p in checkpoints.iterdir() if not p.name.isdecimal()]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_save(tmp_path: Path, number: signal.Signals, code: int):
    flags = (
        "--mesh=1x1",
        *SMALL,
        "--steps=1000000",
        "--checkpoint_every=0",
        f"--workdir={tmp_path}",
    )
    process = subprocess.Popen(
        command(*flags),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    busy = run(*flags)  # meanwhile, the workdir is taken
    assert busy.returncode == 2
    assert "in use by another run" in busy.stderr
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == code, stderr
    assert "Traceback" not in stderr
    (step,) = (int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert step == max(losses(tmp_path))


def test_real_sample(tmp_path: Path):
    if not SAMPLE.exists():
        pytest.skip("the sample of real Criteo rows isn't here")
    flags = ("--mesh=2x4", f"--data={SAMPLE}", "--batch_size=64", "--top_mlp=16,1")
    succeed(*flags, f"--workdir={tmp_path}")
    result = summary(tmp_path)
    assert result["steps"] == 1713 // 64
    for split in ("train", "validation", "test"):
        assert all(np.isfinite(value) for value in result[split].values())
    assert result["teacher_auc"] is None


def test_best_checkpoint_and_target(tmp_path: Path):
    flags = [flag for flag in SMALL if not flag.startswith("--eval_every")]
    flags += ["--eval_every=5", "--steps=40", "--keep_checkpoints=1", "--checkpoint_every=0"]
    succeed("--mesh=1x1", *flags, f"--workdir={tmp_path}")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    validation = {x["step"]: x["auc"] for x in lines if x["split"] == "validation"}
    best = max(validation, key=lambda step: validation[step])
    assert summary(tmp_path)["best_step"] == best
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {best, 40}
    before = (tmp_path / "metrics.jsonl").read_text()
    succeed("--mesh=1x1", *flags, "--eval_only", "--checkpoint=best", f"--workdir={tmp_path}")
    assert (tmp_path / "metrics.jsonl").read_text() == before
    assert summary(tmp_path)["validation"]["auc"] == validation[best]
    other = tmp_path / "target"
    target = f"--target_auc={validation[5]}"
    for _ in range(2):  # run again, it doesn't train on
        succeed("--mesh=1x1", *flags, target, f"--workdir={other}")
        assert summary(other)["steps"] == 5


def test_warm_start(unbroken: Path, tmp_path: Path):
    source = unbroken / "checkpoints" / "00000040"
    other = [flag for flag in SMALL if not flag.startswith("--top_mlp")]
    flags = ("--mesh=1x1", *other, "--top_mlp=4,1", "--steps=1", "--learning_rate=1e-30")
    names = "--warm_start_names=C2,bottom"
    succeed(*flags, f"--warm_start={source}", names, f"--workdir={tmp_path / 'a'}")
    expected, found = arrays(unbroken, 40), arrays(tmp_path / "a", 1)
    np.testing.assert_array_equal(found["/C2/weights"], expected["/C2/weights"])
    assert np.any(found["/C4/weights"] != expected["/C4/weights"])
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
    assert np.all(arrays(tmp_path / "b", 1)["/C3/weights"] == 2)

    fails("/dev/null", *flags, "--workdir=/dev/null/x")
    warm = (f"--warm_start={source}", f"--workdir={tmp_path / 'c'}")
    fails("top.layers.0", *flags, *warm, "--warm_start_names=top")
    fails("'C9'", *flags, *warm, "--warm_start_names=C9")


def bad_line(tmp_path: Path, line: str) -> str:
    good = "\t".join(["1", *["3"] * 13, *["ab12"] * 26])
    path = tmp_path / "raw.txt"
    path.write_text("\n".join([*[good] * 20, line, *[good] * 20]) + "\n")
    return f"--data={path}"


GOOD_FIELDS = ["1", *["3"] * 13, *["ab12"] * 26]

ERRORS = {
    "mesh that doesn't parse": (["--mesh=2by4"], "'2by4'"),
    "batch the mesh doesn't divide": (["--mesh=2x4", "--batch_size=100"], "batch_size: 100"),
    "unknown preset": (["--preset=kagle"], "kaggle"),
    "unknown optimizer": (["--optimizer=adagard"], "rowwise_adagrad"),
    "unknown dense optimizer": (["--dense_optimizer=adma"], "adamw"),
    "unknown field": (["--top_mpl=8,1"], "top_mlp"),
    "value out of range": (["--batch_size=0"], "batch_size"),
    "not a number": (["--bottom_mlp=8,x"], "--bottom_mlp"),
    "unknown table": (["--placements=C99=row_wise"], "C99"),
    "no workdir to evaluate": (["--eval_only"], "there is no"),
    "flag without effect": (["--checkpoint=best"], "--eval_only"),
    "eps of sgd": (["--optimizer=sgd", "--eps=1e-3"], "eps"),
    "positional argument": (["train.txt"], "train.txt"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str, tmp_path: Path):
    flags, fragment = ERRORS[name]
    fails(fragment, *SMALL, *flags, f"--workdir={tmp_path / 'w'}")


def fails(fragment: str, *flags: str) -> None:
    result = run(*flags)
    assert result.returncode == 2, result.stderr[-2000:]
    message = result.stderr.strip()
    assert message.startswith("error: ")
    assert "\n" not in message, "one message, no traceback"
    assert fragment in message


def test_errors_in_data(tmp_path: Path):
    fields = GOOD_FIELDS.copy()
    fields[3] = "x"
    workdir = f"--workdir={tmp_path / 'w'}"
    fails("line 21", bad_line(tmp_path, "\t".join(fields)), workdir)
    fails("/no/such/file", "--data=/no/such/file", workdir)
    empty = tmp_path / "empty.txt"
    empty.touch()
    fails("empty", f"--data={empty}", workdir)
    assert not (tmp_path / "w").exists(), "nothing half-written"


def test_too_few_devices_in_xla_flags(tmp_path: Path):
    flags = "--xla_force_host_platform_device_count=4"
    result = subprocess.run(
        command(*SMALL, "--mesh=2x4", f"--workdir={tmp_path}"),
        cwd=ROOT,
        env={**environment(), "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 2
    assert "8 devices" in result.stderr
    assert "4 of cpu" in result.stderr


def test_checkpoint_of_another_run(unbroken: Path):
    workdir = f"--workdir={unbroken}"
    fails("its data is", "--mesh=2x4", *SMALL, "--seed=1", "--steps=40", workdir)
    fails("its batch_size is 64", "--mesh=2x4", *SMALL, "--batch_size=128", "--steps=40", workdir)
    fails("its optimizer is", "--mesh=2x4", *SMALL, "--optimizer=sgd", "--steps=40", workdir)


def test_non_finite_loss_names_the_step(tmp_path: Path):
    flags = ("--optimizer=sgd", "--learning_rate=1e30", "--steps=5")
    fails("the loss of step 2", *SMALL, *flags, f"--workdir={tmp_path}")


def test_without_workdir_a_new_one_is_made_where_the_user_stands(tmp_path: Path):
    result = subprocess.run(
        command("--mesh=1x1", *SMALL, "--steps=3"),
        cwd=tmp_path,
        env={**environment(), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    (workdir,) = (tmp_path / "runs").iterdir()
    assert f"runs/{workdir.name}/summary.json" in result.stdout
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["00000003"]


def test_full_disk_leaves_no_half_checkpoint(tmp_path: Path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); "
    start = "import runpy; runpy.run_module('experiments.criteo', run_name='__main__')"
    flags = ("--mesh=1x1", *SMALL, "--steps=3", f"--workdir={tmp_path}")
    result = subprocess.run(
        [sys.executable, "-c", limit + start, *flags],
        cwd=ROOT,
        env={**environment(), "JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 2, result.stderr[-2000:]
    assert "error: cannot write the checkpoint" in result.stderr
    assert list((tmp_path / "checkpoints").iterdir()) == []
