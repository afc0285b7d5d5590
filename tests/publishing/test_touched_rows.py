"""Rows that batches name, as their steps are done."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from publishing_run import COMPOSED, SHARED
from saved_run import CONFIG, learner_on

from dlrm_jax.config import Config
from dlrm_jax.training.touched_rows import TouchedRows

IDS = np.array([[3, 20, 2999, -1, 7, -1], [3, 20, 5, -1, 30, 2]], np.int32)


def taken(touched: TouchedRows) -> dict[str, list[int]]:
    return {name: numbers.tolist() for name, numbers in touched.take().items()}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CONFIG, {"C1": [3], "C2": [5, 20, 2999], "C3": [2, 7, 30]}),
        (SHARED, {"C1": [3], "C2": [2, 5, 7, 20, 30, 2999]}),
        (dataclasses.replace(CONFIG, frozen_tables=("C2",)), {"C1": [3], "C3": [2, 7, 30]}),
    ],
)
def test_of_each_table(config: Config, expected: dict[str, list[int]]):
    touched = TouchedRows(learner_on("1x1", config).collection)
    assert taken(touched) == {}
    touched.add(1, IDS)
    touched.done(1)
    assert taken(touched) == expected
    assert taken(touched) == {}


def test_quotients_and_remainders():
    collection = learner_on("1x1", COMPOSED).collection
    touched = TouchedRows(collection)
    touched.add(1, IDS)
    touched.done(1)
    found = taken(touched)
    maps = {x.table: x.id_map for x in collection.lookups if x.feature == "C2"}
    assert len(maps) == 2
    for table, id_map in maps.items():
        assert id_map is not None
        assert found[table] == sorted({int(id_map(x)) for x in (20, 2999, 5)})


def test_batches_that_are_read_ahead_wait_for_their_steps():
    touched = TouchedRows(learner_on("1x1").collection)
    touched.add(1, IDS[:1])
    touched.add(2, IDS[1:])
    touched.done(1)
    assert taken(touched) == {"C1": [3], "C2": [20, 2999], "C3": [7]}
    touched.done(2)
    assert taken(touched) == {"C1": [3], "C2": [5, 20], "C3": [2, 30]}
    touched.mark({"C1": np.array([6, 0])})  # a delta that wasn't written
    assert taken(touched) == {"C1": [0, 6]}


def test_a_penalty_of_all_rows_changes_all_that_are_trained():
    config = dataclasses.replace(CONFIG, frozen_tables=("C2",))
    touched = TouchedRows(learner_on("1x1", config).collection, all_rows=True)
    for step in (1, 2):
        touched.add(step, IDS)
        touched.done(step)
        found = taken(touched)
        assert found == {"C1": [*range(7)], "C3": [*range(40)]}
