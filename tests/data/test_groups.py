"""Groups by a feature that the schema's groups name: its values count, also unseen ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.groups import codes_of, first_places
from dlrm_jax.data.preprocessing.hashed_values import group_codes
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.data.preprocessing.serving import LogEncoder
from dlrm_jax.errors import UserError

USERS = ["a", "b", "a", None, "c", "d", None, "c"]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_feature_may_be_a_group(tmp_path: Path, kind: str):
    log = tmp_path / f"log.{kind}"
    frame = pl.DataFrame({"y": [0, 1] * 4, "user": USERS})
    frame.write_parquet(log) if kind == "parquet" else frame.write_csv(log)
    arrays = tmp_path / "arrays"
    schema = Schema("y", ("user",), groups=("user",))
    preprocess([log], arrays, Options(schema, split="time:0.25,0.25"))
    data, expected = load_directory(arrays), group_codes(frame["user"])
    unseen, other = codes_of(data.validation, "other", {"other": 0})  # c and d
    assert unseen == other
    places = first_places(data)
    found = [codes_of(split, "user", places) for split in data.splits.values()]
    np.testing.assert_array_equal(np.concatenate(found), expected)
    encoder = LogEncoder(arrays, data.fingerprint)
    (chunk,) = encoder.files([log], ["user"])
    np.testing.assert_array_equal(chunk.examples.groups["user"], expected)
    assert chunk.keys["user"].to_list()[:3] == USERS[:3]


def test_a_list_is_no_group():
    with pytest.raises(UserError, match=r"groups: expected one value a row of 'a', .* leave it"):
        Schema("y", ("a", "b"), bag_lengths={"a": 2}, groups=("a",))


def test_lists_are_no_groups():
    with pytest.raises(UserError, match=r"column 'user': expected single values .*, got List"):
        group_codes(pl.Series("user", [[1], [2, 3]]))
