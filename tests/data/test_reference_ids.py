"""The ids and dense features of the DLRM paper's implementation, against its rules in Python."""

from pathlib import Path

import numpy as np
import pytest
from criteo_lines import IN_TIME, dense_of, ids_of, text

from dlrm_jax.data import criteo_text
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.preprocessing.pipeline import Options, preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "criteo_sample" / "train.txt"


def by_the_rules(lines, max_ind_range):
    """Dense features, ids and the number of rows of each table."""
    numbers = [{} for _ in range(26)]
    dense, ids = [], []
    for line in lines:
        fields = line.split("\t")
        integers = np.array([max(int(x or 0), 0) for x in fields[1:14]], np.float32)
        dense.append(np.log(integers + np.float32(1)))
        row = []
        for known, field in zip(numbers, fields[14:], strict=True):
            value = int(field or "0", 16)
            value = value % max_ind_range if max_ind_range else value
            row.append(known.setdefault(value, len(known)))
        ids.append(row)
    return np.array(dense), np.array(ids), [len(known) for known in numbers]


def check(path, output, max_ind_range=0):
    preprocess([path], output, Options(reference=True, max_ind_range=max_ind_range))
    dataset = load_directory(output)
    dense, ids, rows = by_the_rules(path.read_text().splitlines(), max_ind_range)
    found = np.concatenate([ids_of(dataset, split) for split in IN_TIME])
    np.testing.assert_array_equal(found, ids)
    found = np.concatenate([dense_of(dataset, split) for split in IN_TIME])
    np.testing.assert_array_equal(found, dense)
    assert list(dataset.table_rows) == rows


@pytest.mark.parametrize("max_ind_range", [0, 3, 10_000_000])
def test_generated_lines(tmp_path, monkeypatch, max_ind_range):
    # Negative and missing integers, missing values, zero itself, values that come only late.
    monkeypatch.setattr(criteo_text, "BLOCK_BYTES", 3000)
    zero = "\t".join(["1", *["2147483647"] * 13, *["00000000"] * 26]) + "\n"
    path = tmp_path / "train.txt"
    path.write_text(text(40) + zero + text(60, seed=1))
    check(path, tmp_path / "out", max_ind_range)


@pytest.mark.skipif(not SAMPLE.exists(), reason="needs a sample of Criteo's data")
def test_real_lines(tmp_path):
    check(SAMPLE, tmp_path / "out")


@pytest.mark.parametrize(
    "contradiction",
    [
        {"reference": True, "min_count": 2},
        {"reference": True, "max_rows": 100},
        {"reference": True, "schema": Schema("y", ("a",))},
        {"reference": True, "max_ind_range": -1},
        {"max_ind_range": 5},
    ],
)
def test_options_that_contradict_each_other(contradiction):
    with pytest.raises(UserError, match="reference's ids"):
        Options(**contradiction)
