"""Runs that route ids a batch ahead: their files are those of runs that don't."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from main_job import arrays
from saved_run import CONFIG, examples

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset
from dlrm_jax.mesh import make_mesh
from dlrm_jax.run import Options, run
from dlrm_jax.training.build import make_learner

DATA = Dataset(
    examples(512),
    examples(64, seed=1),
    examples(64, seed=2),
    CONFIG.table_rows,
    CONFIG.bag_lengths,
    "drawn",
    "drawn examples",
)
PLAIN = dataclasses.replace(
    CONFIG,
    placements=("C1=replicated", "C2=fully_sharded", "C3=row_wise"),
    log_every=1,
    eval_every=2,
    checkpoint_every=3,
    keep_checkpoints=9,
    steps=5,
)
PIPELINED = dataclasses.replace(PLAIN, pipelined=True)


@pytest.mark.thorough
def test_files_are_the_same_and_a_killed_run_may_go_on_either_way(tmp_path: Path):
    learner = make_learner(PLAIN, make_mesh("2x2"))

    def metrics(workdir: Path, config: Config) -> str:
        run(config, DATA, learner, Options(workdir), lambda line: None)
        return (workdir / "metrics.jsonl").read_text(encoding="utf-8")

    plain, pipelined = tmp_path / "plain", tmp_path / "pipelined"
    expected = metrics(plain, PLAIN)
    assert metrics(pipelined, PIPELINED) == expected
    for killed, config in ((plain, PIPELINED), (pipelined, PLAIN)):
        resumed = killed.with_name(f"{killed.name}, resumed")
        shutil.copytree(killed, resumed)
        shutil.rmtree(resumed / "checkpoints" / "00000005")
        assert metrics(resumed, config) == expected
    found = [arrays(path, 5) for path in sorted(tmp_path.iterdir())]
    assert len(found) == 4
    for name, array in found[0].items():
        for other in found[1:]:
            np.testing.assert_array_equal(other[name], array, err_msg=name)
