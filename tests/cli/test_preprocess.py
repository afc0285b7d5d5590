"""From logs to a trained model by command lines alone."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from criteo_lines import text
from main_job import run, summary

PROGRAM = ("-m", "dlrm_jax", "preprocess")
MODEL = ("--embedding_dim=4", "--bottom_mlp=4", "--top_mlp=4,1", "--batch_size=64", "--steps=5",
         "--evaluation_batch_size=64")  # fmt: skip


def prepare(*flags: str) -> str:
    result = run(*flags, program=PROGRAM)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.thorough  # by default `test_from_train_to_curl.py` does all of it
def test_a_users_log_becomes_a_model_and_predictions(tmp_path: Path):
    rng = np.random.default_rng(0)
    n = 1000
    bags = [[f"item {x}" for x in rng.integers(0, 30, length)] for length in rng.integers(0, 5, n)]
    log = pl.DataFrame(
        {
            "clicked": rng.random(n) < 0.4,
            "price": rng.lognormal(size=n),
            "shop": [f"shop {x}" for x in rng.integers(0, 50, n)],
            "viewed": bags,
        }
    )
    log.write_parquet(tmp_path / "log.parquet")
    schema = {"label": "clicked", "dense": ["price"], "categorical": ["shop", "viewed"],
              "bag_lengths": {"viewed": 3}}  # fmt: skip
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    output = f"--output={tmp_path / 'data'}"
    printed = prepare(f"--input={tmp_path / 'log.parquet'}", f"--schema={tmp_path / 'schema.json'}",
                      "--min_count=2", output)  # fmt: skip
    assert "1,000 rows in 7 days" in printed
    assert "--split=days:\nsplit       rows  share\ntrain        858  85.8%\n" in printed
    result = run("--mesh=2x4", f"--data={tmp_path / 'data'}", f"--workdir={tmp_path / 'w'}", *MODEL)
    assert result.returncode == 0, result.stderr[-2000:]
    found = summary(tmp_path / "w")
    assert sum(found[split]["examples"] for split in ("validation", "test")) == n // 7
    assert all(np.isfinite(found[split]["log_loss"]) for split in ("train", "validation", "test"))

    log.head(30).drop("clicked").write_parquet(tmp_path / "new.parquet")
    checkpoint = f"--checkpoint={tmp_path / 'w' / 'checkpoints' / '00000005'}"
    new = (f"--data={tmp_path / 'new.parquet'}", f"--output={tmp_path / 'p.csv'}")
    vectors = ("--tables=viewed", f"--tables_output={tmp_path / 'vectors'}")
    result = run(checkpoint, *new, *vectors, program=("-m", "dlrm_jax", "predict"))
    assert result.returncode == 0, result.stderr[-2000:]
    p = pl.read_csv(tmp_path / "p.csv")["probability"]
    assert (len(p), p.is_between(0, 1).all()) == (30, True)
    items = pl.read_parquet(tmp_path / "vectors" / "viewed.parquet")
    assert set(items["value"].drop_nulls()) <= {f"item {x}" for x in range(30)}

    result = run(f"--data={tmp_path / 'data'}", program=("-m", "dlrm_jax", "report"))
    assert "report.html" in result.stdout, result.stderr
    assert "viewed" in (tmp_path / "data" / "report.html").read_text()


def errors_of(*flags: str, shell: str = "") -> str:
    """The one message of a call that fails."""
    program = ("-c", f"import os; os.execvp('sh', ['sh', '-c', {shell!r}])") if shell else PROGRAM
    result = run(*flags, program=program)
    assert result.returncode == 2, result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in result.stderr
    return last


def test_errors_are_one_message(tmp_path: Path):
    output = f"--output={tmp_path / 'o'}"
    for flags, fragment in [
        ((f"--input={tmp_path / 'none'}", output), "--input: there is no "),
        ((output,), "--input is missing"),
        ((f"--input={sys.executable}", output), "line 1: expected 40"),
        ((f"--input={tmp_path / 'a'}", output, f"--validation={tmp_path / 'a'}"), "needs --test"),
        ((f"--input={tmp_path / 'a'}", output, "--multi_hot_sizes=2,x"), "got '2,x'"),
    ]:
        assert fragment in errors_of(*flags)
    assert not (tmp_path / "o").exists()


def test_malformed_files_are_named_and_nothing_is_left(tmp_path: Path):
    good = text(40).encode()
    lines = good.splitlines(keepends=True)
    for name, content, fragment in [
        ("cut.gz", gzip.compress(good)[:-20], "cut short or damaged"),
        ("label", good + b"2" + lines[0][1:], "line 41, column 1 (label): expected 0 or 1, found"),
        ("number", good + b"1\tx" + lines[0][2:], "line 41, column 2 (I1): expected a 64-bit"),
        ("encoding", good + lines[0].replace(b"\t", b"\t\xe4", 1), "line 41, column 2 (I1)"),
        ("crlf", good.replace(b"\n", b"\r\n"), "line 1: the line ends with CR LF"),
        ("empty", b"", "is empty; expected rows"),
    ]:
        (tmp_path / "day_0").write_bytes(good)
        (tmp_path / name).write_bytes(content)
        inputs = f"--input={tmp_path / 'day_0'},{tmp_path / name}"
        message = errors_of(inputs, f"--output={tmp_path / 'o'}")
        assert str(tmp_path / name) in message
        assert fragment in message
        assert not (tmp_path / "o").exists()


def test_a_full_disk(tmp_path: Path):
    (tmp_path / "train.txt").write_text(text(4000))
    flags = f"--input={tmp_path / 'train.txt'} --output={tmp_path / 'o'}"
    # No file may grow beyond so many blocks of 512 bytes.
    command = f"ulimit -f 200; exec {sys.executable} -m dlrm_jax preprocess {flags}"
    assert "Finished files are kept" in errors_of(shell=command)
    assert not (tmp_path / "o").exists()
    prepare(*flags.split())
    assert (tmp_path / "o" / "metadata.json").exists()
