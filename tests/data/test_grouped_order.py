"""Examples of a group stay together, in an order that depends on seed and epoch alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numbered import numbered

from dlrm_jax.data.batches import TrainBatches
from dlrm_jax.data.grouped_order import GroupedOrder

CODES = np.array([7, 7, -1, 3, 9, 7, -1, 3, 3, 2**62, 5, 5], np.int64)


@pytest.mark.parametrize("window", [0, 1, 6, 99])
def test_groups_stay_together(window: int):
    order = GroupedOrder(CODES, window, 4)
    epochs = [order.rows(epoch, 0, 12) for epoch in range(3)]
    for rows in epochs:
        assert sorted(rows) == list(range(12))
        runs = [list(run) for _, run in itertools.groupby(rows, key=lambda row: CODES[row])]
        named = [run for run in runs if CODES[run[0]] >= 0]
        assert len(named) == 5, "each group is one run"
        assert all(run == sorted(run) for run in named), "in the order of the log"
        parts = [order.rows(0, *edges) for edges in ((0, 5), (5, 6), (6, 12))]
        np.testing.assert_array_equal(np.concatenate(parts), epochs[0])
    if window == 1:
        assert [list(rows) for rows in epochs] == [[0, 1, 5, 2, 3, 7, 8, 4, 6, 9, 10, 11]] * 3
    else:
        assert not np.array_equal(epochs[0], epochs[1])
        assert not np.array_equal(epochs[0], GroupedOrder(CODES, window, 5).rows(0, 0, 12))


def test_batches_number_the_groups_alike_in_all_processes():
    split = numbered(12)
    whole = TrainBatches(split, 4, seed=1, groups=CODES)
    halves = [TrainBatches(split, 4, 1, 0, process, 2, groups=CODES) for process in range(2)]
    for step in (4, 0, 7):
        batch = whole[step]
        rows = batch.labels.astype(int)
        assert batch.groups[0] == 0
        for i, j in itertools.pairwise(range(4)):
            same = CODES[rows[i]] == CODES[rows[j]] and CODES[rows[i]] >= 0
            assert batch.groups[j] - batch.groups[i] == (0 if same else 1)
        joined = [np.concatenate([half[step][i] for half in halves]) for i in (2, 5)]
        np.testing.assert_array_equal(joined, [batch.labels, batch.groups])
    assert TrainBatches(split, 4, seed=1)[0].groups is None
