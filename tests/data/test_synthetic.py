import hashlib
import tracemalloc

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from dlrm_jax.config import Config
from dlrm_jax.data.auc import auc
from dlrm_jax.data.check import check_ids
from dlrm_jax.data.generated import teacher
from dlrm_jax.data.generated.synthetic import generate
from dlrm_jax.errors import UserError


def small(examples=150_000, seed=0, **changes):
    arguments = {
        "table_rows": Config().table_rows,
        "bag_lengths": (1,) * 26,
        "dense_features": 13,
        "examples": examples,
        "zipf_exponent": 1.05,
        "seed": seed,
    }
    return generate(**(arguments | changes))


def ceiling(dataset, split="train"):
    assert dataset.teacher_auc is not None
    return dataset.teacher_auc[split]


@pytest.fixture(scope="module")
def dataset():
    return small()


def test_shape_split_and_ranges(dataset):
    assert [len(split) for split in dataset.splits.values()] == [120_000, 15_000, 15_000]
    (train,) = dataset.train.days
    assert train.dense.shape == (120_000, 13)
    assert train.ids.shape == (120_000, 26)
    for name, split in dataset.splits.items():
        check_ids(split, dataset.table_rows, dataset.bag_lengths, name)
        assert set(np.unique(split.labels)) == {0, 1}
    assert train.dense.min() == 0
    assert np.isfinite(train.dense).all()
    assert train.labels.mean() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_the_teacher_is_as_good_as_models_are_on_real_clicks(seed):
    assert 0.78 < ceiling(small(60_000, seed)) < 0.85


def one_hot(ids, most=300):
    """The hottest ids of each feature, which are the only ones that carry much signal."""
    columns = [
        np.minimum(ids[:, [f]], most) == np.arange(min(rows, most))
        for f, rows in enumerate(Config().table_rows)
    ]
    return np.concatenate(columns, axis=1).astype(np.float32)


def test_models_without_interactions_fall_short(dataset):
    (train,), (test,) = dataset.train.days, dataset.validation.days
    best = ceiling(dataset, "validation")

    model = LogisticRegression().fit(train.dense[:30_000], train.labels[:30_000])
    dense_only = roc_auc_score(test.labels, model.decision_function(test.dense))
    assert 0.52 < dense_only < best - 0.2

    features = [
        np.hstack([one_hot(split.ids[:30_000], most=30), split.dense[:30_000]])
        for split in (train, test)
    ]
    model = LogisticRegression(C=0.1, max_iter=30, tol=1e-2).fit(features[0], train.labels[:30_000])
    additive = roc_auc_score(test.labels, model.decision_function(features[1]))
    assert dense_only + 0.05 < additive < best - 0.04


def test_the_result_depends_on_the_arguments_only():
    first, again, other = small(1000), small(1000, bag_lengths=[1] * 26), small(1000, seed=1)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.teacher_auc == again.teacher_auc
    for name in ("dense", "ids", "labels"):
        a, b, c = (data.train.days[0].arrays[name] for data in (first, again, other))
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


def test_bags_have_all_lengths_and_padding_at_the_end():
    dataset = small(20_000, table_rows=(50, 2000, 1000), bag_lengths=(1, 3, 8))
    check_ids(dataset.train, dataset.table_rows, dataset.bag_lengths, "train")
    ids = np.asarray(dataset.train.days[0].ids)
    assert (ids[:, 0] >= 0).all()
    for bag in (ids[:, 1:4], ids[:, 4:]):
        lengths = (bag >= 0).sum(axis=1)
        np.testing.assert_array_equal(bag >= 0, np.arange(bag.shape[1]) < lengths[:, None])
        counts = np.bincount(lengths, minlength=bag.shape[1] + 1)
        assert counts[0] == 0
        np.testing.assert_allclose(counts[1:] / len(bag), 1 / bag.shape[1], atol=0.02)
    assert 0.75 < ceiling(dataset) < 0.88


def test_long_bags_are_drawn_in_parts_and_the_numbers_are_the_same(monkeypatch):
    """The hash is that of the version that drew all of them at a time."""
    digest = "6d50e986266ec74038ccca10374d7fbbb95c36e5"
    for places in (teacher._PLACES, 30_000):
        monkeypatch.setattr(teacher, "_PLACES", places)
        data = small(500, table_rows=(50, 40, 9000), bag_lengths=(3, 1, 90))
        examples = data.train.days[0]
        numbers = b"".join(examples.arrays[x].tobytes() for x in ("ids", "labels"))
        assert hashlib.sha1(numbers).hexdigest() == digest
    monkeypatch.setattr(teacher, "_PLACES", 1 << 16)
    tracemalloc.start()
    small(10, table_rows=(9000, 5), bag_lengths=(200, 1), dense_features=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20, "the ids of the teacher's sample are 25 MiB"


@pytest.mark.parametrize(
    ("rows", "dense", "exponent"),
    [
        ((1_000_000,) * 8, 512, 0.0),
        ((1_000_000,) * 8, 13, 1.0),
        ((33_800_000, 2**31 - 1), 0, 1.05),
        ((5,), 1, 1.5),
        ((1, 1), 2, 1.0),
    ],
)
def test_other_shapes(rows, dense, exponent):
    bags = (1,) * len(rows)
    dataset = small(
        5000, table_rows=rows, bag_lengths=bags, dense_features=dense, zipf_exponent=exponent
    )
    check_ids(dataset.train, rows, bags, "train")
    assert ceiling(dataset) > 0.7


@pytest.mark.parametrize(
    ("name", "value"),
    [("table_rows", (0,) * 26), ("bag_lengths", (1,)), ("bag_lengths", (0,) * 26), ("examples", 9),
     ("dense_features", -1), ("zipf_exponent", -0.1), ("zipf_exponent", float("nan")),
     ("seed", -1)],
)  # fmt: skip
def test_arguments_out_of_range(name, value):
    with pytest.raises(UserError, match=name.split("_")[0]):
        small(**{name: value})


def test_auc_is_exact_with_ties():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 10, 500).astype(np.float32)
    labels = rng.integers(0, 2, 500).astype(np.float32)
    assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert np.isnan(auc(scores, np.zeros(500, np.float32)))
