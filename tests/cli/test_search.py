"""The search command, and the file of settings that train takes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from pathlib import Path
from types import ModuleType

import jax
import main_job
import polars as pl
import pytest
from full_disk import largest_file

from dlrm_jax.cli import flags as cli_flags
from dlrm_jax.cli.search_page import write_tables
from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.saved_config import VERSION, file_fields, file_text
from dlrm_jax.search.findings import Finding
from dlrm_jax.search.grammar import parse_space
from dlrm_jax.training.config_data import generate_data


@pytest.fixture(autouse=True)
def same_cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """A program in this process leaves the cache of compiled programs where it is."""
    if "program" in request.fixturenames:
        directory = str(jax.config.jax_compilation_cache_dir)  # pyright: ignore
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", directory)


SEARCH = pytest.mark.parametrize("program", ["dlrm_jax.cli.search"], indirect=True)
TRAIN = pytest.mark.parametrize("program", ["dlrm_jax.cli.train"], indirect=True)
SMALL = (
    "--model=logistic_regression",
    "--table_rows=7,40",
    "--dense_features=2",
    "--examples=2000",
    "--eval_every=10",
    "--accumulation_steps=2",
)


@SEARCH
def test_data_without_validation_are_refused(program: ModuleType):
    data = generate_data(Config(table_rows=(7, 40), examples=100, dense_features=2))
    program.check_data(Config(table_rows=(7, 40)), data)
    data = dataclasses.replace(data, validation=data.validation[:0])
    with pytest.raises(UserError, match="data: expected examples for validation, which choose"):
        program.check_data(Config(table_rows=(7, 40)), data)


@SEARCH
def test_a_search(program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "search"
    space = "learning_rate=0.05|1e38,batch_size=63|64"
    given = ["search", *SMALL, f"--space={space}", f"--output={output}", "--trials=9"]
    cli_flags.parse(given)
    program.main()
    printed = capsys.readouterr().out
    table = pl.read_csv(output / "trials.csv")
    assert pl.read_parquet(output / "trials.parquet").columns == table.columns
    assert table["outcome"].to_list() == ["complete", "failed", "refused", "refused"]
    assert table["learning_rate"][0] == 0.05
    assert "4 trials: 1 complete, 1 failed, 2 refused" in printed
    assert "2 refused: batch_size: 63 is not divisible by accumulation_steps = 2" in printed
    assert "failed: the loss of step" in printed
    assert "best: learning_rate=0.05, batch_size=64, with validation auc 0." in printed
    assert f"  python -m dlrm_jax train --mesh=1x1 --config={output}/best.json" in printed
    page = (output / "search.html").read_text()
    assert page.count("<img ") == 2
    assert "is not divisible" in page
    fields = file_fields(output / "best.json")
    assert (fields["learning_rate"], fields["batch_size"]) == (0.05, 64)
    assert fields["table_rows"] == (7, 40)
    assert "collisions" not in fields, "it isn't read"

    program.main()  # all is done
    assert "trial 0: " not in capsys.readouterr().out
    cli_flags.parse([*given, "--epochs=2"])
    with pytest.raises(UserError, match="has a search with epochs 1, not 2"):
        program.main()
    cli_flags.parse([*given, "--epochs=1", "--features=a,b"])
    with pytest.raises(UserError, match=r'has a search with features \[\], not \["a", "b"\]'):
        program.main()


@SEARCH
def test_no_trial_has_a_result(program: ModuleType, tmp_path: Path):
    given = [*SMALL, "--accumulation_steps=64", f"--output={tmp_path}", "--trials=2"]
    cli_flags.parse(["search", *given, "--space=batch_size=65..127"])
    with pytest.raises(
        UserError, match=r"no trial of .* has a result; refused: batch_size: \d+ is"
    ):
        program.main()


@SEARCH
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "--space is missing; such as --space=learning_rate=.*"),
        ("--space=eps=0..1", "--output is missing; such as --output=searches/log"),
        ("--space=eps=0..1 --output=o --eps=1", "--eps has no effect with --space, which sets it"),
        ("--space=eps=0..x --output=o", "space: eps: expected numbers"),
        ("--space=eps=0..1 --output=o --bottom_mlp=8", "bottom_mlp: dot interaction needs it"),
        ("--space=loss=bce|mse --output=o --collisions=2", "--collisions has no effect without"),
    ],
)
def test_refused_before_data_are_read(program: ModuleType, given: str, message: str):
    cli_flags.parse(["search", *given.split()])
    with pytest.raises(UserError, match=f"^{message}"):
        program.main()


@TRAIN
def test_settings_of_a_file_lie_between_preset_and_flags(program: ModuleType, tmp_path: Path):
    path = tmp_path / "best.json"
    path.write_text('{"top_mlp": [32, 1], "learning_rate": 1, "embedding_dim": 8}')
    flags = ["train", f"--config={path}", "--learning_rate=0.5"]
    cli_flags.parse([*flags, "--bottom_mlp=16,8"])
    config = program.config_of_flags()
    assert (config.top_mlp, config.learning_rate, config.batch_size) == ((32, 1), 0.5, 512)
    assert (config.bottom_mlp, config.embedding_dim) == ((16, 8), 8)

    path.write_text('{"steps": 200}')
    cli_flags.FLAGS.unparse_flags()
    cli_flags.parse(["train", f"--config={path}", "--epochs=2"])
    config = program.config_of_flags()
    assert (config.steps, config.epochs) == (0, 2)

    path.write_text('{"collisions": 7}')
    cli_flags.FLAGS.unparse_flags()
    cli_flags.parse(["train", f"--config={path}"])
    with pytest.raises(UserError, match=r"config file .*: collisions has no effect without --comp"):
        program.main()
    path.write_text('{"table_rows": [3]}')
    cli_flags.parse(["train", f"--config={path}", "--data=log"])
    with pytest.raises(UserError, match="table_rows has no effect with --data: the data decide"):
        program.config_of_flags()
    path.write_text('{"config_version": 1, "learning_rate": 2}')  # it knew no names of features
    assert program.config_of_flags().learning_rate == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON: .*"),
        ("[1]", r'expected an object such as {"learning_rate": 0.1}, got \[1\]'),
        ('{"learning_rat": 1}', "there is no setting 'learning_rat'; did you mean learning_rate.*"),
        ('{"learning_rate": "0.1"}', "learning_rate: expected float, got '0.1'"),
        ('{"top_mlp": 1}', "top_mlp: expected a tuple of int, got 1"),
        ('{"top_mlp": [1.5]}', "top_mlp: expected a tuple of int, .*"),
        ('{"pooling": "som"}', "pooling: expected one of sum, mean, learned, got 'som'"),
        ('{"epochs": 0}', "epochs: expected at least 1, got 0"),
        ('{"epochs": 1, "epochs": 2}', "expected JSON: 'epochs' is there twice"),
        ('{"config_version": "x"}', "config_version: expected a number, got 'x'"),
    ],
)
def test_a_wrong_file_is_explained(text: str, message: str, tmp_path: Path):
    path = tmp_path / "best.json"
    path.write_text(text)
    with pytest.raises(UserError, match=f"^config file {path}: {message}$"):
        file_fields(path)


def test_files_of_all_versions(tmp_path: Path):
    path = tmp_path / "best.json"
    with pytest.raises(UserError, match="can't be read: No such file"):
        file_fields(path)
    config = Config(top_mlp=(3, 1), check_copies_every=7)
    path.write_text(file_text(config, ["loss"]))
    fields = file_fields(path)
    assert Config(**fields) == config
    assert "loss" not in fields
    first = json.loads(path.read_text()) | {"config_version": 1}
    del first["check_copies_every"]  # which came later
    path.write_text(json.dumps(first))
    assert file_fields(path)["check_copies_every"] == 0
    path.write_text(json.dumps({"config_version": VERSION + 1}))
    with pytest.raises(UserError, match=r"was written by a later version .* use that version"):
        file_fields(path)


@pytest.mark.thorough
def test_jobs_of_which_one_is_killed(tmp_path: Path):
    """In processes of their own: the other one does all trials, and that of the killed one."""
    given = [*SMALL, "--batch_size=64", "--space=learning_rate=0.01..0.2:log", "--jobs=2",
             "--trials=4", f"--output={tmp_path}", "--epochs=40"]  # fmt: skip
    with main_job.in_background(*given, program=("-m", "dlrm_jax", "search")) as parent:
        deadline = time.monotonic() + 150
        while not list(tmp_path.glob("trials/*/metrics.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.05)
        tasks = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        os.kill(int(tasks[0]), signal.SIGKILL)
        ended = parent.end()
    assert ended.returncode == 0, ended.stderr
    assert "was killed by SIGKILL" in ended.stderr
    assert "4 trials: 4 complete" in ended.stdout


def test_a_full_disk_is_an_error_of_the_disk(tmp_path: Path):
    findings = [Finding(0, "complete", {"learning_rate": 0.1}, 0.5, 1, 1, 1.0, "")]
    with largest_file(10), pytest.raises(OSError, match=r"File too large: '.*trials\.parquet'"):
        write_tables(findings, parse_space("learning_rate=0.1|0.2"), "auc", tmp_path)
