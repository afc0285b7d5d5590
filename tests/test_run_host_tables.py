"""Runs with tables in host memory are those without, in every number; and what rules them out."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from main_job import arrays
from saved_run import CONFIG, examples

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset
from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.mesh import make_mesh
from dlrm_jax.run import Options, Outcome, run
from dlrm_jax.serving.export import export
from dlrm_jax.serving.trained_model import TrainedModel
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.learner import Learner

ROWS = (7, 3000, 300)
BASE = dataclasses.replace(CONFIG, table_rows=ROWS)
DATA = Dataset(
    examples(1024, 0, BASE),
    examples(64, 1, BASE),
    examples(64, 2, BASE),
    ROWS,
    BASE.bag_lengths,
    "drawn",
    "drawn examples",
)
PLAIN = dataclasses.replace(
    BASE,
    placements=(),
    table_optimizers=("C2=adam:0.01",),
    log_every=1,
    eval_every=3,
    checkpoint_every=4,
    keep_checkpoints=9,
    steps=10,
)
CACHED = dataclasses.replace(PLAIN, host_tables=("C2=250", "C3=200"))


@functools.cache
def learner_of(config: Config, mesh: str) -> Learner:
    """A learner that tests share, and with it the programs that were compiled for it."""
    return make_learner(config, make_mesh(mesh), feeds=True)


def run_in(workdir: Path, config: Config, mesh: str = "1x1", **options: Any) -> Outcome:
    learner = learner_of(dataclasses.replace(config, steps=10, pipelined=False), mesh)
    return run(config, DATA, learner, Options(workdir, **options), lambda line: None)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("plain") / "run"
    run_in(workdir, PLAIN)
    return workdir


def assert_same(found: Path, expected: Path):
    text = (expected / "metrics.jsonl").read_text(encoding="utf-8")
    assert (found / "metrics.jsonl").read_text(encoding="utf-8") == text
    own = arrays(found, 10)
    for key, array in arrays(expected, 10).items():
        np.testing.assert_array_equal(own[key], array, err_msg=key)


@pytest.mark.parametrize("pipelined", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_metrics_and_checkpoints_are_the_same(plain: Path, tmp_path: Path, pipelined: bool):
    config = dataclasses.replace(CACHED, pipelined=pipelined)
    outcome = run_in(tmp_path / "run", config)
    assert_same(tmp_path / "run", plain)
    traffic = outcome.summary["host_tables"]
    assert 0 < traffic["hit_rate"]["C2"] < traffic["hit_rate"]["C3"] < 1
    assert traffic["bytes_to_host_per_step"] > 0


@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param(PLAIN, CACHED, marks=pytest.mark.thorough),
        (CACHED, PLAIN),
        pytest.param(CACHED, CACHED, marks=pytest.mark.thorough),
    ],
)
def test_resumed_with_and_without(plain: Path, tmp_path: Path, first: Config, then: Config):
    copy = tmp_path / "run"
    if first is PLAIN:
        shutil.copytree(plain, copy)
        shutil.rmtree(copy / "checkpoints" / "00000010")
        shutil.rmtree(copy / "checkpoints" / "00000008")
    else:
        run_in(copy, dataclasses.replace(first, steps=4))
    run_in(copy, then)
    lines = (copy / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    expected = (plain / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [x for x in lines if '"train"' in x] == [x for x in expected if '"train"' in x]
    own = arrays(copy, 10)
    for key, array in arrays(plain, 10).items():
        np.testing.assert_array_equal(own[key], array, err_msg=key)


def test_predictions_and_artifacts_are_of_whole_tables(tmp_path: Path):
    workdir = tmp_path / "run"
    run_in(workdir, CACHED)
    expected = Predictor.load(workdir).predict(DATA.validation)
    assert np.ptp(expected) > 0.01
    export(TrainedModel.read(workdir), tmp_path / "artifact", "small", "float32")
    found = Predictor.load(tmp_path / "artifact").predict(DATA.validation)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.thorough
def test_on_a_mesh_only_the_order_of_sums_differs(tmp_path: Path):
    placed = dataclasses.replace(CACHED, placements=("C2=row_wise", "C3=table_wise"))
    short = dataclasses.replace(placed, steps=4, host_tables=("C2=260", "C3=200"))
    for config in (short, dataclasses.replace(short, host_tables=())):
        run_in(tmp_path / str(len(config.host_tables)), config, "2x2")
    found, expected = arrays(tmp_path / "2", 4), arrays(tmp_path / "0", 4)
    for key, array in expected.items():
        np.testing.assert_allclose(found[key], array, rtol=1e-4, atol=1e-6, err_msg=key)


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        ({}, {"journal_seconds": 1.0}, "host_tables: journal_seconds reads and writes rows"),
        ({}, {"warm_start": Path("x")}, "host_tables: warm_start reads and writes rows"),
        ({"table_l2": 0.1, "table_l2_rows": "all"}, {}, "host_tables: table_l2_rows=all reads"),
        ({"host_tables": ("C2=100",)}, {}, "step 1: table C2: a batch reads 1.. different rows"),
        ({"host_tables": ("C2=3000",)}, {}, "expected the rows of C2 on the devices, from 1 to 29"),
        ({"host_tables": ("C2=0",)}, {}, "from 1 to 2999, got '0'; leave C2 out to have all 3000"),
        ({"dynamic_ids": ("C2=400",)}, {}, "host_tables: the rows of table C2 come"),
        (
            {"host_tables": ("C2=300",), "table_dtype": "bfloat16"},
            {},
            "host_tables: C2 is rounded .* expected tables of float32, or no stochastic rounding",
        ),
        (
            {"compression": "quotient_remainder", "host_tables": ("C2=300",)},
            {},
            "host_tables: C2 is compressed to quotient_remainder",
        ),
    ],
)
def test_what_reads_rows_otherwise_is_refused(
    tmp_path: Path, changed: dict[str, Any], options: dict[str, Any], message: str
):
    with pytest.raises(UserError, match=message):
        run_in(tmp_path / "run", dataclasses.replace(CACHED, **changed), **options)


def test_only_training_feeds_caches():
    with pytest.raises(UserError, match=r"host_tables: only train moves rows .* got C2=250,C3=200"):
        make_learner(CACHED, make_mesh("1x1"))
