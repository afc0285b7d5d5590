import itertools

import numpy as np
import pytest

from dlrm_jax.config import SMALL_ROWS
from dlrm_jax.data.auc import auc
from dlrm_jax.data.formats.criteo_format import EMPTY
from dlrm_jax.data.generated.example_stream import CHUNK, ExampleStream
from dlrm_jax.data.generated.locality import StackProfile, stack_distances
from dlrm_jax.data.generated.zipf import bounded_zipf
from dlrm_jax.errors import UserError
from dlrm_jax.presets import KAGGLE_ROWS

ROWS = SMALL_ROWS


def stream(rows=ROWS, exponent=1.05, seed=0, **options):
    return ExampleStream(rows, exponent, seed, **options)


def draw(source, day=0, chunks=2):
    return list(itertools.islice(source.day(day), chunks))


def joined(chunks, name):
    return np.concatenate([getattr(chunk, name) for chunk in chunks])


def trace_profile(rows=20_000):
    return StackProfile.measure(bounded_zipf(np.random.default_rng(0), rows, 1.05, (100_000,)))


def check(chunks, rows):
    dense, ids, integers = (joined(chunks, name) for name in ("dense", "ids", "integers"))
    assert (ids.min(axis=0) == 0).all()
    assert (ids.max(axis=0) < rows).all()
    assert set(np.unique(joined(chunks, "labels"))) == {0, 1}
    np.testing.assert_allclose(dense, np.log1p(np.maximum(integers, 0)), rtol=1e-6)
    assert integers.min() == EMPTY
    for value in (EMPTY, -1, 0):
        assert 0.01 < np.mean(integers == value) < 0.4


@pytest.mark.parametrize(
    "rows",
    [ROWS, pytest.param(KAGGLE_ROWS, marks=pytest.mark.thorough)],
    ids=["small", "kaggle"],
)
@pytest.mark.parametrize("profile", [None, trace_profile()], ids=["zipf", "local"])
def test_examples_and_their_ceiling(rows, profile):
    chunks = draw(stream(rows, profile=profile), chunks=6)
    check(chunks, rows)
    labels = joined(chunks, "labels")
    assert labels.mean() == pytest.approx(0.25, abs=0.04)
    assert 0.78 < auc(joined(chunks, "logits"), labels) < 0.85
    # Neither drifts away in the course of time.
    last = chunks[-1]
    assert last.labels.mean() == pytest.approx(0.25, abs=0.05)
    assert auc(last.logits, last.labels) == pytest.approx(0.8, abs=0.03)


def test_seeds_and_days_differ_and_repeat():
    first, again, other = draw(stream()), draw(stream()), draw(stream(seed=1))
    two_days = stream(days=2)
    days = [draw(two_days, day) for day in (0, 1)]
    for name in ("labels", "integers", "dense", "ids", "logits"):
        values = joined(first, name)
        np.testing.assert_array_equal(values, joined(again, name))
        for different in (joined(other, name), joined(days[1], name)):
            assert not np.array_equal(values, different)
        np.testing.assert_array_equal(values, joined(days[0], name))


def test_local_ids_have_the_locality_of_the_profile():
    profile = trace_profile()
    ids = joined(draw(stream(KAGGLE_ROWS, profile=profile), chunks=6), "ids")
    counts = np.asarray(profile.counts) / sum(profile.counts)
    wanted = counts[np.asarray(profile.distances) == 0].sum()
    for feature in (2, 3, 11):
        got = np.mean(stack_distances(ids[:, feature]) == 0)
        assert got == pytest.approx(wanted, abs=0.01)
    assert not np.array_equal(ids[:, 2], ids[:, 3])


def test_later_days_have_ids_that_earlier_ones_lack():
    rows = (2000,) * 26
    source = stream(rows, exponent=0.0, days=4, drift=0.1)
    seen = [set(joined(draw(source, day, chunks=4), "ids")[:, 5].tolist()) for day in range(4)]
    for day, ids in enumerate(seen):
        assert len(ids) == pytest.approx(2000 * (1 - 0.1 * (3 - day)), abs=60)
        for earlier in seen[:day]:
            assert earlier < ids
    assert 0 in seen[0]


def test_without_drift_days_have_the_same_ids():
    source = stream((300,) * 26, exponent=0.0, days=3)
    seen = [set(joined(draw(source, day), "ids")[:, 0].tolist()) for day in range(3)]
    assert seen[0] == seen[2] == set(range(300))


def test_a_block_is_cut():
    (chunk,) = draw(stream(), chunks=1)
    assert len(chunk) == CHUNK
    cut = chunk.first(10)
    assert len(cut) == 10
    np.testing.assert_array_equal(cut.ids, chunk.ids[:10])


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"rows": ROWS[:8]}, "26 categorical features.*got 8"),
        ({"rows": (0, *ROWS[1:])}, r"table_rows\[0\]"),
        ({"exponent": float("nan")}, "zipf_exponent"),
        ({"seed": -1}, "seed"),
        ({"days": 0}, "days"),
        ({"drift": -0.1}, "drift"),
        ({"drift": 0.1, "days": 24}, "drift times the days"),
    ],
)
def test_arguments_out_of_range(options, fragment):
    with pytest.raises(UserError, match=fragment):
        stream(**options)
