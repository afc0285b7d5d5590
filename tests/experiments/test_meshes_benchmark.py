"""The benchmark of meshes: a row for each, with its ratio to one device."""

from __future__ import annotations

import itertools
import json

import pytest
from main_job import run
from quick_machine import quickly

PROGRAM = quickly("experiments.benchmarks.meshes")
SMALL = (
    "--preset=small", "--table_rows=3000,7,40", "--embedding_dim=8", "--bottom_mlp=16,8",
    "--top_mlp=8,1", "--meshes=1x2", "--rounds=1", "--samples_per_round=64",
)  # fmt: skip


@pytest.mark.thorough
def test_each_mesh_beside_one_device():
    flags = ("--json", "--batch_sizes=32,64", "--optimizers=sgd", "--compute_dtypes=float32")
    result = run(*SMALL, *flags, program=PROGRAM)
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout)
    names = [(row["batch_size"], row["mesh"]) for row in found]
    assert names == list(itertools.product((32, 64), ("1x1", "1x2")))
    for one, two in zip(found[::2], found[1::2], strict=True):
        assert one["ratio"] == 1
        assert two["ratio"] == pytest.approx(two["median_ms"] / one["median_ms"])  # of one round
        assert two["processor_ratio"] == pytest.approx(two["processor_ms"] / one["processor_ms"])
        assert two["core_round_trip_us"] == {"min": 0.5, "max": 0.5}


def test_a_batch_that_a_mesh_cannot_share_out():
    result = run(*SMALL, "--batch_sizes=33", program=PROGRAM)
    assert result.returncode == 2
    assert "batch_sizes: 33 samples can't be split evenly" in result.stderr
