"""Ranks that say what the seeds leave open."""

from __future__ import annotations

import math
from typing import Any

import pytest
from scipy.stats import ttest_ind

from experiments.compare.ranks import rank_ranges, shown


def test_what_chance_explains_is_a_tie():
    clear = [0.80, 0.801, 0.802]
    alike = [0.77, 0.775, 0.769], [0.771, 0.776, 0.768]
    worst = [0.5, 0.501, 0.499]
    values = [alike[0], worst, clear, alike[1]]
    assert rank_ranges(values) == [(2, 3), (4, 4), (1, 1), (2, 3)]
    assert [shown(x) for x in rank_ranges(values)] == ["2\u20133", "4", "1", "2\u20133"]


@pytest.mark.parametrize("distance", [0.001, 0.002, 0.0025, 0.003, 0.01])
def test_the_test_is_that_of_welch(distance: float):
    one, other = [0.8, 0.801, 0.8025], [x - distance for x in (0.799, 0.801, 0.8035)]
    test: Any = ttest_ind(one, other, equal_var=False)
    decided = test.pvalue < 0.05
    assert rank_ranges([one, other]) == ([(1, 1), (2, 2)] if decided else [(1, 2), (1, 2)])


def test_ranks_of_one_seed_and_of_seeds_without_spread():
    assert rank_ranges([[0.7], [0.8]]) == [(1, 2), (1, 2)]
    assert rank_ranges([[0.7, 0.7], [0.8, 0.8], [0.8, 0.8]]) == [(3, 3), (1, 2), (1, 2)]


def test_who_diverged_is_behind_all_others():
    assert rank_ranges([[0.7, math.nan], [0.6, 0.61]]) == [(2, 2), (1, 1)]
