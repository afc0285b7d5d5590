"""From logs to a trained model by command lines alone."""

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
from main_job import run, summary

PROGRAM = ("-m", "experiments.preprocess")
MODEL = ("--embedding_dim=4", "--bottom_mlp=4", "--top_mlp=4,1", "--batch_size=64", "--steps=5",
         "--evaluation_batch_size=64")  # fmt: skip


def prepare(*flags: str) -> str:
    result = run(*flags, program=PROGRAM)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_a_users_log_becomes_a_model(tmp_path: Path):
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
    result = run("--mesh=2x4", f"--data={tmp_path / 'data'}", f"--workdir={tmp_path / 'w'}", *MODEL)
    assert result.returncode == 0, result.stderr[-2000:]
    found = summary(tmp_path / "w")
    assert sum(found[split]["examples"] for split in ("validation", "test")) == n // 7
    assert all(np.isfinite(found[split]["log_loss"]) for split in ("train", "validation", "test"))


def test_errors_are_one_message(tmp_path: Path):
    for flags, fragment in [
        ((f"--input={tmp_path / 'none'}", f"--output={tmp_path / 'o'}"), "none: No such file"),
        ((f"--output={tmp_path / 'o'}",), "--input is missing"),
        ((f"--input={sys.executable}", f"--output={tmp_path / 'o'}"), "line 1: expected 40"),
    ]:
        result = run(*flags, program=PROGRAM)
        assert result.returncode == 2, result.stderr
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("error: ")
        assert fragment in last
    assert not (tmp_path / "o").exists()
