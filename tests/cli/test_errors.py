"""Mistakes a user makes end in one message that names them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from main_job import ROOT, SMALL, fails, run, summary

GOOD_FIELDS = ["1", *["3"] * 13, *["ab12"] * 26]

ERRORS = {
    "mesh that doesn't parse": (["--mesh=2by4"], "'2by4'"),
    "batch the mesh doesn't divide": (["--mesh=2x4", "--batch_size=100"], "--batch_size: 100"),
    "unknown preset": (["--preset=kagle"], "kaggle"),
    "unknown optimizer": (["--optimizer=adagard"], "rowwise_adagrad"),
    "unknown dense optimizer": (["--dense_optimizer=adma"], "adamw"),
    "unknown field": (["--top_mpl=8,1"], "top_mlp"),
    "value out of range": (["--batch_size=0"], "batch_size"),
    "not a number": (["--bottom_mlp=8,x"], "--bottom_mlp"),
    "unknown table": (["--table_optimizers=C99=sgd"], "C99"),
    "no workdir to evaluate": (["--eval_only"], "there is no"),
    "flag without effect": (["--checkpoint=best"], "--eval_only"),
    "metrics that nothing records": (["--tensorboard", "--eval_only"], "--tensorboard has no"),
    "start of a run that is over": (
        ["--warm_start=/nonexistent", "--warm_start_names=C1", "--eval_only"],
        "--warm_start has no effect with --eval_only",
    ),
    "eps of sgd": (["--optimizer=sgd", "--eps=1e-3"], "eps"),
    "value of a switch that is off": (["--notensorboard=x"], "--notensorboard=x does not take"),
    "positional argument": (["train.txt"], "train.txt"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str, tmp_path: Path):
    flags, fragment = ERRORS[name]
    fails(fragment, *SMALL, *flags, f"--workdir={tmp_path / 'w'}")


def bad_line(tmp_path: Path, line: str) -> str:
    good = "\t".join(GOOD_FIELDS)
    path = tmp_path / "raw.txt"
    path.write_text("\n".join([*[good] * 20, line, *[good] * 20]) + "\n")
    return f"--data={path}"


def test_errors_in_data(tmp_path: Path):
    fields = GOOD_FIELDS.copy()
    fields[3] = "x"
    workdir = f"--workdir={tmp_path / 'w'}"
    fails("line 21", bad_line(tmp_path, "\t".join(fields)), workdir)
    fails("/no/such/file", "--data=/no/such/file", workdir)
    fails("File name too long", f"--data={'a' * 300}", workdir)
    empty = tmp_path / "empty.txt"
    empty.touch()
    fails("empty", f"--data={empty}", workdir)
    assert not (tmp_path / "w").exists(), "nothing half-written"


def test_a_workdir_that_orbax_would_not_find_again(tmp_path: Path):
    fails("expected a path without *, ? and [", *SMALL, f"--workdir={tmp_path / 'w[1]'}")
    assert not (tmp_path / "w[1]").exists()


@pytest.mark.parametrize("home", ["/proc", "a file"])
def test_a_cache_that_cannot_be_made_is_said_once(home: str, tmp_path: Path):
    if home == "a file":
        (tmp_path / "home").touch()
        home = str(tmp_path / "home")
    program = (
        "import jax, sys\n"
        "from dlrm_jax.cli.flags import FLAGS\n"
        "from dlrm_jax.cli.start import start\n"
        "FLAGS(['program'])\n"
        "start('1x1')\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "for size in (3, 4): jax.numpy.ones(size).block_until_ready()\n"
    )
    result = run(program=("-c", program), XDG_CACHE_HOME="", HOME=home)
    assert result.returncode == 0, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("note: compiled programs aren't kept for the next run: [Errno ")
    assert f"'{home}/.cache" in line
    assert line.endswith("; set XDG_CACHE_HOME to a directory that you can write to")


def test_too_few_devices_in_xla_flags(tmp_path: Path):
    flags = "--xla_force_host_platform_device_count=4"
    result = run(*SMALL, "--mesh=2x4", f"--workdir={tmp_path}", XLA_FLAGS=flags)
    assert result.returncode == 2
    assert "needs 8 devices, but XLA_FLAGS asks for 4 of cpu: set its --xla_for" in result.stderr


FAILING = """
from dlrm_jax.cli.run import run
def main():
    {}
run(main, ["program"])
"""


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("open('/')", "[Errno 21] Is a directory: '/'"),
        ("open('/dev/null/x')", "[Errno 20] Not a directory: '/dev/null/x'"),
        ("open(300 * 'x')", f"[Errno 36] File name too long: '{300 * 'x'}'"),
        ("import os; os.symlink('w', 'w'); open('w')", "[Errno 40] Too many .* links: 'w'"),
        ("raise OSError(28, 'No space left on device')", "[Errno 28] No space left on device"),
        ("raise MemoryError('100 TiB')", "there is too little memory: 100 TiB; make .* smaller"),
    ],
)
def test_files_and_memory_that_there_are_not(statement: str, message: str, tmp_path: Path):
    program = ("-c", FAILING.format(statement))
    result = run(program=program, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert result.returncode == 2
    assert re.fullmatch(f"error: {message}\n".replace("[E", r"\[E"), result.stderr)


def test_an_error_without_a_file_is_a_fault_of_the_program():
    result = run(program=("-c", FAILING.format("raise OSError(9, 'Bad file descriptor')")))
    assert result.returncode == 1
    assert "Traceback" in result.stderr


@pytest.mark.thorough
def test_a_closed_output_and_one_without_umlauts():
    program = """
from dlrm_jax.cli.run import run
for options in [], ["--help"]:
    try:
        run(lambda: print("wä ☃", flush=True), ["program", *options])
    except SystemExit as end:
        assert not end.code, (options, end.code)
"""
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("w\\xe4 \\u2603\n")
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    result = subprocess.run(closed, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_metrics_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "metrics.jsonl").mkdir()
    fails("metrics.jsonl", "--mesh=1x1", *SMALL, "--steps=1", f"--workdir={tmp_path}")


@pytest.mark.thorough
def test_a_pipe_without_a_reader_is_no_reason_to_stop(tmp_path: Path):
    unread = "import os; read, write = os.pipe(); os.close(read); os.dup2(write, 1); "
    start = "from dlrm_jax.cli.main import main; main('train')"
    flags = ("--mesh=1x1", *SMALL, "--steps=1", f"--workdir={tmp_path}")
    result = run(*flags, program=("-c", unread + start))
    assert (result.returncode, result.stderr) == (0, "")
    assert summary(tmp_path)["steps"] == 1


def test_checkpoint_of_another_run(unbroken: Path):
    workdir = f"--workdir={unbroken}"
    fails("it was trained on other data", "--mesh=2x4", *SMALL, "--seed=1", "--steps=40", workdir)
    fails("its batch_size is 64", "--mesh=2x4", *SMALL, "--batch_size=128", "--steps=40", workdir)
    fails("its optimizer is", "--mesh=2x4", *SMALL, "--optimizer=sgd", "--steps=40", workdir)


def test_non_finite_loss_names_the_step(tmp_path: Path):
    flags = ("--optimizer=sgd", "--learning_rate=1e30", "--steps=5")
    fails("the loss of step 2", *SMALL, *flags, f"--workdir={tmp_path}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--against=3by1"], "--against: expected DxM, .*, got '3by1'"),
        (["--against=1x5"], "--batch_size: 1024 samples can't be split evenly over .* mesh 1x5"),
        (["--examples=5"], "--examples has no effect: .*"),
        (["--ids=uniform", "--zipf_exponent=1"], "--zipf_exponent has no effect with --ids=uni.*"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_errors_of_the_benchmark(flags, message):
    program = ("-m", "experiments.benchmarks.step")
    result = run("--preset=small", "--mesh=2x4", "--batch_size=1024", *flags, program=program)
    assert result.returncode == 2, result.stderr[-2000:]
    assert re.fullmatch(f"error: {message}\n", result.stderr)


def test_a_broken_disk_is_no_fault_of_the_program():
    broken = "def main(): raise OSError(5, 'Input/output error', 'runs/a')"
    result = run(program=("-c", f"from dlrm_jax.cli.run import run\n{broken}\nrun(main)"))
    assert (result.returncode, result.stderr) == (
        2,
        "error: [Errno 5] Input/output error: 'runs/a'\n",
    )
