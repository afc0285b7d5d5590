import dataclasses

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from dlrm_jax.data.arrays import Dataset, Examples, Split
from dlrm_jax.data.check import check_ids, check_labels
from dlrm_jax.errors import UserError


def examples(ids, dense=2):
    ids = np.asarray(ids, np.int32)
    n = len(ids)
    return Examples(
        np.zeros((n, dense), np.float32), ids, np.zeros(n, np.float32), np.ones(n, np.float32)
    )


def split(*days):
    return Split(tuple(examples(ids) for ids in days))


def test_examples_know_their_length():
    assert len(examples([[0], [1], [2]])) == 3


@pytest.mark.parametrize("name", ["dense", "ids", "labels", "sample_weights"])
@pytest.mark.parametrize(
    "change", [lambda a: a.astype(np.float64), lambda a: a[None], lambda a: a[1:]]
)
def test_examples_refuse_arrays_of_wrong_type_rank_or_length(name, change):
    good = examples([[0], [1]])
    arrays = good.arrays | {name: change(good.arrays[name])}
    # Where annotations are checked at runtime, the checker is faster.
    with pytest.raises((UserError, TypeCheckError), match="Examples"):
        Examples(**arrays)


@pytest.mark.parametrize("name", ["dense", "labels", "group g"])
def test_examples_refuse_masked_arrays(name):
    arrays = examples([[0], [1]]).arrays | {"group g": np.zeros(2, np.int64)}
    with pytest.raises(UserError, match=rf"Examples.{name} must be a plain array, got a masked"):
        Examples.of(arrays | {name: np.ma.masked_equal(arrays[name], 0)})


def test_dataset_names_the_split_that_does_not_fit():
    good, bad = split([[0, 1]]), split([[0, 1, 2]])
    with pytest.raises(UserError, match=r"test has 2 and 3"):
        Dataset(good, good, bad, (5, 5), (1, 1), "", "")


@pytest.mark.parametrize(("rows", "bags"), [((5,), (1, 1)), ((5, 0), (1, 1)), ((5, 5), (2, 0))])
def test_dataset_refuses_tables_that_make_no_sense(rows, bags):
    good = split([[0, 1]])
    with pytest.raises(UserError):
        Dataset(good, good, good, rows, bags, "", "")


def test_check_ids_accepts_the_whole_range():
    check_ids(split([[0, -1, 6]], [[4, 2, 0]]), (5, 7), (1, 2), "train")


@pytest.mark.parametrize(("bad", "cut"), [(7, 0), (-2, 30_000), (2**31 - 1, 70_001)])
def test_check_ids_names_row_feature_and_value(bad, cut):
    ids = np.zeros((100_000, 3), np.int32)
    ids[70_001, 2] = bad
    ids[70_002, 0] = 99
    with pytest.raises(UserError, match=rf"train, row 70001 .*feature C2: .*0 to 6.*got {bad}\."):
        check_ids(split(ids[:cut], ids[cut:]), (5, 7), (1, 2), "train")


def test_check_ids_refuses_other_shapes():
    with pytest.raises(UserError, match="4 ids"):
        check_ids(split([[0, 1, 2]]), (5, 7), (1, 3), "train")


def labelled(labels, sample_weights):
    n = len(labels)
    arrays = np.zeros((n, 1), np.float32), np.zeros((n, 1), np.int32)
    return Examples(*arrays, np.asarray(labels), np.asarray(sample_weights, np.float32))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_check_labels_accepts_labels_and_weights_as_they_should_be(dtype):
    day = labelled(np.array([0, 1, 1], dtype), [0, 0.5, 3e38])
    check_labels(Split((day,)), "train")
    check_labels(Split((dataclasses.replace(day, sample_weights=None),)), "train")


@pytest.mark.parametrize("bad", [2, -1, 100, 0.5, np.nan, np.inf])
@pytest.mark.parametrize("cut", [0, 70_001])
def test_check_labels_names_row_and_value(bad, cut):
    labels, ones = np.zeros(100_000, np.float32), np.ones(100_000)
    labels[[70_001, 70_005]] = bad, 7
    days = (labelled(labels[:cut], ones[:cut]), labelled(labels[cut:], ones[cut:]))
    message = rf"^validation, row 70001 \(from 0\): expected label 0 or 1, got {bad}"
    with pytest.raises(UserError, match=message):
        check_labels(Split(days), "validation")
    if bad in (2, -1, 100):
        whole = (labelled(labels.astype(np.int32), ones),)
        with pytest.raises(UserError, match=message):
            check_labels(Split(whole), "validation")


@pytest.mark.parametrize("bad", [-0.5, np.nan, np.inf])
def test_check_labels_names_a_sample_weight_out_of_range(bad):
    day = labelled(np.array([0, 1, 1], np.int32), [1, bad, 1])
    message = rf"^train, row 1 .*: expected a finite sample weight of 0 or more, got {bad}"
    with pytest.raises(UserError, match=message):
        check_labels(Split((day,)), "train")
