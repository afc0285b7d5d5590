"""The benchmark of the index of items: its recall is of the right items, and it prints a table."""

from __future__ import annotations

import re

import numpy as np
import pytest
from main_job import run

from experiments.benchmarks.clustered_items import draw


def test_drawn_items_are_clustered_and_filtered():
    drawn = draw(3000, 20, 8, 0)
    np.testing.assert_allclose(np.linalg.norm(drawn.items, axis=1), 1, rtol=1e-5)
    nearest = np.sort(drawn.items[:100] @ drawn.items.T, axis=1)[:, -2]
    assert nearest.mean() > 0.8
    assert 0.01 < drawn.passing().mean() < 0.2


@pytest.mark.thorough
def test_a_table_without_faiss():
    result = run(
        *("--items=3000", "--queries=8", "--dim=8", "--rounds=1", "--seconds=0.01", "--nofaiss"),
        *("--batch_sizes=4", "--recalls=0.5,0.9"),
        program=("-m", "experiments.benchmarks.retrieval_index"),
    )
    assert result.returncode == 0, result.stderr[-2000:]
    rows = re.findall(r"^\| (\w+ int8) \| (\d*) \| (\w+) \| 4 \| ([\d.]+) ", result.stdout, re.M)
    assert {(name, kept) for name, _, kept, _ in rows} == {
        (name, kept) for name in ("flat int8", "ivf int8") for kept in ("yes", "no")
    }
    assert all(float(recall) > 0.9 for name, _, _, recall in rows if name == "flat int8")


@pytest.mark.thorough
def test_too_few_items_pass_the_filter():
    result = run(
        *("--items=1000", "--queries=8", "--dim=8", "--nofaiss", "--batch_sizes=4"),
        program=("-m", "experiments.benchmarks.retrieval_index"),
    )
    assert "--items: expected 100 or more that pass the filter, 82 of 1,000 do" in result.stderr
