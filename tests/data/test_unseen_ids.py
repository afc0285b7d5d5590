"""A share of the known ids is replaced by the unseen one, by seed and step."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import ABSENT, Examples, Split
from dlrm_jax.data.batches import TrainBatches
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.data.unseen_ids import UnseenIds, unseen_ids
from dlrm_jax.errors import UserError
from dlrm_jax.run_data import load_data

PREPARED = Path(__file__).parent.parent / "previous" / "data"


def split() -> Split:
    ids = np.tile(np.array([ABSENT, 0, 1, 2, 3, 400], np.int32), (600, 10))
    return Split((Examples(np.zeros((600, 1), np.float32), ids, np.zeros(600, np.float32)),))


def test_a_share_of_the_known_ids_is_replaced_and_no_other():
    before, after = (
        TrainBatches(split(), 600, 7, unseen=unseen)[0].ids for unseen in (None, UnseenIds(0.2, 7))
    )
    known = before >= 2
    np.testing.assert_array_equal(after[~known], before[~known])
    changed = after != before
    assert set(after[changed]) == {0}
    assert changed[known].mean() == pytest.approx(0.2, abs=0.01)


def test_what_is_replaced_depends_on_seed_and_step_alone():
    def batches(seed: int = 7, *of_processes: int) -> TrainBatches:
        return TrainBatches(split(), 30, 7, 0, *of_processes, unseen=UnseenIds(0.5, seed))

    whole, later = batches(), batches()
    _ = [whole[i] for i in range(3)]  # a resumed run hasn't read these
    np.testing.assert_array_equal(whole[23].ids, later[23].ids)
    parts = [batches(7, process, 3)[23].ids for process in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), whole[23].ids)
    assert np.any(whole[3].ids != whole[23].ids)  # in the second epoch, too
    assert np.any(whole[23].ids != batches(8)[23].ids)


def test_data_without_an_unseen_id_are_refused():
    data = load_directory(PREPARED)
    assert isinstance(unseen_ids(data, 0.1, 0), UnseenIds)
    assert unseen_ids(data, 0.0, 0) is None
    other = dataclasses.replace(data, directory=None)
    with pytest.raises(UserError, match=r"unseen_rate: expected data of .* got 0.1 for "):
        unseen_ids(other, 0.1, 0)
    with pytest.raises(UserError, match="unseen_rate: generated ids stand for no values"):
        load_data(Config(unseen_rate=0.1), None)
    with pytest.raises(UserError, match="unseen_rate: expected a share below 1, got 1"):
        Config(unseen_rate=1.0)


def test_a_number_in_a_bin_is_never_unseen(tmp_path: Path):
    log = pl.DataFrame({"y": [0, 1] * 20, "a": range(40), "price": range(40), "b": [[7, 8]] * 40})
    log.write_parquet(tmp_path / "log.parquet")
    schema = Schema("y", ("a", "price", "b"), bag_lengths={"b": 2}, bins={"price": 4})
    preprocess([tmp_path / "log.parquet"], tmp_path / "data", Options(schema, split="none"))
    data = load_directory(tmp_path / "data")
    unseen = unseen_ids(data, 0.9, 0)
    assert unseen
    after = unseen(np.asarray(data.train.days[0].ids), 0, slice(0, 40), 40)
    assert (after == 0).any(axis=0).tolist() == [True, False, True, True]
