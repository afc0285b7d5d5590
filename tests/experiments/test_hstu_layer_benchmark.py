"""The benchmark of HSTU's layer: its needed work, and what it compares."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from main_job import run

from dlrm_jax.errors import UserError
from experiments.benchmarks.hstu_layer import check
from experiments.benchmarks.hstu_problem import Case, draw, parameters, read, save
from experiments.benchmarks.peers.workers.our_hstu import OurLayer

CASE = Case(2, 3, 10, varied=True, timed=True, train=True, tokens=70)


def test_lengths_fill_the_tokens():
    lengths = CASE.lengths()
    assert 5 <= lengths.min() < lengths.max() <= 10
    assert 60 < lengths.sum() <= 70
    equal = dataclasses.replace(CASE, varied=False)
    assert equal.lengths().tolist() == [10] * 7
    assert dataclasses.replace(equal, length=100).lengths().tolist() == [100]


def test_needed_operations_by_hand():
    case = dataclasses.replace(CASE, length=2, varied=False, tokens=2, train=False)
    maps = 2 * 2 * 6 * (24 + 6)
    pairs = 3 * 2 * (2 * 3 + 2 * 3)  # of two heads, each a score and a sum
    assert case.needed_flops() == maps + pairs
    assert dataclasses.replace(case, train=True).needed_flops() == 3 * (maps + pairs)


@pytest.mark.thorough
def test_gradients_are_the_slopes_of_the_results(tmp_path):
    save(CASE, tmp_path)
    case, arrays = read(tmp_path)
    assert case == CASE
    found = OurLayer(case, arrays).results()
    assert set(found) == set(parameters(arrays))
    case = dataclasses.replace(case, train=False)
    for name, gradient in found.items():
        assert gradient.shape == arrays[name].shape
        direction = np.random.default_rng(2).normal(size=gradient.shape).astype("f4")
        step = 1e-3 * direction
        ends = [
            OurLayer(case, {**arrays, name: arrays[name] + x}).results()["out"]
            for x in (step, -step)
        ]
        slope = np.sum((ends[0] - ends[1]) * arrays["cotangent"]) / 2e-3
        assert slope == pytest.approx(np.sum(gradient * direction), rel=0.05, abs=0.05)


def test_other_results_are_an_error():
    ours = {"out": np.ones(3), "x": np.ones(3)}
    assert check(ours, ours, "peer") == 0
    for wrong in (1.1, np.nan):
        with pytest.raises(UserError, match=r"peer computes something else: x is .* away"):
            check(ours, {**ours, "x": np.array([1, wrong, 1])}, "peer")


def test_cases_of_one_seed_are_equal():
    for name, array in draw(CASE).items():
        np.testing.assert_array_equal(array, draw(CASE)[name])


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--shapes=2x2", "--shapes: expected some of 4x64, 1x50, got '2x2'"),
        ("--modes=baz", "--modes: expected some of train, infer, got 'baz'"),
        ("--tokens=100", "--tokens: expected at least the longest of --lengths, 2,000, got 100"),
    ],
)
def test_cases_that_there_are_not(flag: str, text: str):
    done = run(flag, program=("-m", "experiments.benchmarks.hstu_layer"))
    assert done.returncode == 2
    assert text in done.stderr
