"""The benchmark of steps with dynamic ids times both, and its ids are born as it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from main_job import run

from dlrm_jax.config import Config
from experiments.benchmarks.born_ids import Ids

PROGRAM = ("-m", "experiments.benchmarks.dynamic_step")
FLAGS = ("--preset=small", "--table_rows=7,3000", "--dynamic_above=100", "--batch_size=64")


@pytest.mark.thorough
def test_both_are_timed():
    done = run(*FLAGS, "--rounds=1", "--steps_per_round=2", "--born=0.5", program=PROGRAM)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["dynamic_tables"] == 1
    assert 0 < found["born_a_step"] < 64
    assert min(found["step_ms"].values()) > 0
    assert found["ratio"] > 0


def test_tables_without_dynamic_ids_are_refused():
    done = run(*FLAGS[:-2], "--dynamic_above=5000", program=PROGRAM)
    assert done.returncode == 2
    assert "some of more than --dynamic_above=5000 rows, got 7, 3000" in done.stderr


def test_ids_are_the_same_but_for_those_that_are_born():
    config = Config(table_rows=(7, 50), batch_size=40)
    ids = Ids(config, [1], 0.3)
    seen = set[int]()
    for step in range(70):
        fixed, raw = ids.fixed(step), ids.raw(step)
        new = raw.ids != fixed.ids
        assert not new[:, 0].any()
        assert new.sum() == ids.born
        own = set(raw.ids[new].tolist())
        assert len(own) == ids.born
        assert not own & seen
        seen |= own
        np.testing.assert_array_equal(raw.labels, fixed.labels)
