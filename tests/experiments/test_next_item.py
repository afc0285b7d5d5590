"""The program of the next item: what it refuses before it trains, and an export that fails."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from main_job import run

from dlrm_jax.cli import exported_model
from dlrm_jax.errors import UserError

PROGRAM = ("-m", "experiments.next_item")


def test_flags_that_are_refused(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text("{}", encoding="utf-8")
    frame = pl.DataFrame({"user_id": [1, 2], "item_id": [1, 2], "timestamp": [-(2**62), 2**62]})
    frame.write_parquet(tmp_path / "far.parquet")
    for flags, text in (
        (("--seed=99999999999999999999",), "--seed: expected at most 9223372036854775807, got 9"),
        (
            ("--workdir=model",),
            "--workdir: expected the directory of a run, got model, an exported",
        ),
        (("--export=/proc/x",), "--export: expected a directory that can be made, got /proc/x"),
        (("--export=model",), "--export: expected a directory to make, got model, which exists"),
        (("--export=x", "--workdir=./y/../x"), "--export: expected a directory that the run y/.."),
        (("--export=x", "--workdir=x/run"), "that the run x/run isn't in, got x"),
        (
            ("--items=20", "--at=5", "--metric=hr@20"),
            "--metric: expected numbers k below that of items, 20",
        ),
        (("--log=far.parquet",), "column 'timestamp': expected seconds from 1970 of at most"),
    ):
        result = run("--mesh=1x1", *flags, program=PROGRAM, cwd=tmp_path)
        assert result.returncode == 2, result.stderr
        assert text in result.stderr
        assert not (tmp_path / "runs").exists()


def test_an_export_that_fails_says_that_the_run_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    flags = SimpleNamespace(export=str(tmp_path / "model"))
    monkeypatch.setattr(exported_model, "FLAGS", flags)

    def failing() -> None:
        with exported_model.exporting(Path("runs/own")) as path:
            assert path == tmp_path / "model"
            raise UserError("no room")

    with pytest.raises(UserError, match=r"no room\. The run is kept in runs/own: the same command"):
        failing()
