import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_jax.data.generated.locality import (
    NEW,
    LocalIds,
    StackProfile,
    read_trace,
    stack_distances,
)
from dlrm_jax.data.generated.zipf import bounded_zipf
from dlrm_jax.errors import UserError


def by_definition(trace):
    """A list as the LRU stack, the most recent id first."""
    stack, distances = [], []
    for access in trace:
        distances.append(stack.index(access) + 1 if access in stack else NEW)
        if access in stack:
            stack.remove(access)
        stack.insert(0, access)
    return distances


def zipf_trace(accesses, rows=5000, seed=0):
    return bounded_zipf(np.random.default_rng(seed), rows, 1.05, (accesses,))


def local_ids(profile, accesses, rows=10**6, seed=0):
    return LocalIds(profile, rows, np.random.default_rng(seed)).draw(accesses)


def shares_up_to(profile, bounds):
    """The share of accesses with a distance of at most each bound."""
    counts = np.asarray(profile.counts)
    below = np.searchsorted(profile.distances, bounds, side="right")
    return np.concatenate([[0], np.cumsum(counts)])[below] / counts.sum()


@given(st.lists(st.integers(0, 12) | st.integers(-(2**63), 2**63 - 1), max_size=80))
def test_distances_are_those_of_an_lru_stack(trace):
    assert stack_distances(np.array(trace, np.int64)).tolist() == by_definition(trace)


@pytest.mark.parametrize("accesses", [1, 2, 3, 255, 256, 257, 3000])
def test_distances_of_longer_traces(accesses):
    trace = zipf_trace(accesses, rows=100)
    assert stack_distances(trace).tolist() == by_definition(trace.tolist())


def test_a_profile_counts_the_distances():
    profile = StackProfile.measure(np.array([7, 7, 3, 7, 3, 3]))
    assert profile == StackProfile(distances=(NEW, 1, 2), counts=(2, 2, 2))


@pytest.mark.parametrize("source_rows", [50, 5000, 100_000])
def test_generated_ids_have_the_distances_of_the_profile(source_rows):
    profile = StackProfile.measure(zipf_trace(200_000, source_rows))
    generated = StackProfile.measure(local_ids(profile, 200_000))
    bounds = np.unique(np.geomspace(1, source_rows, 60).astype(int)) - 1
    wanted, got = shares_up_to(profile, bounds), shares_up_to(generated, bounds)
    # Kolmogorov's bound at 1e-6 is 2.7 / sqrt(N) = 0.006.
    np.testing.assert_allclose(got, wanted, atol=0.006)
    assert wanted[-1] - wanted[0] > 0.4, "a profile with repetitions"


def test_rows_are_the_limit():
    profile = StackProfile.measure(zipf_trace(20_000))
    for rows in (1, 2, 30):
        ids = local_ids(profile, 5000, rows)
        assert set(ids.tolist()) == set(range(rows))
        wanted, got = (
            shares_up_to(p, range(1, rows)) - shares_up_to(p, [0])
            for p in (profile, StackProfile.measure(ids))
        )
        # What is out of reach becomes the least recently used row, at a distance of `rows`.
        np.testing.assert_allclose(got, wanted, atol=0.04)


def test_the_stream_depends_on_seed_and_profile_only():
    profile = StackProfile.measure(zipf_trace(10_000))
    whole = local_ids(profile, 1000)
    stream = LocalIds(profile, 10**6, np.random.default_rng(0))
    np.testing.assert_array_equal(whole, np.concatenate([stream.draw(n) for n in (1, 299, 700)]))
    assert not np.array_equal(whole, local_ids(profile, 1000, seed=1))


def test_new_ids_only():
    np.testing.assert_array_equal(local_ids(StackProfile((NEW,), (3,)), 5, 3), [0, 1, 2, 0, 1])


def test_a_profile_is_saved_and_loaded(tmp_path):
    profile = StackProfile.measure(zipf_trace(1000))
    profile.save(tmp_path / "profile.json")
    assert StackProfile.load(tmp_path / "profile.json") == profile


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ("", "expected a JSON object"),
        ("[1]", "expected a JSON object"),
        ('{"distances": [0]}', "expected a JSON object"),
        ('{"distances": 0, "counts": 1}', "expected a JSON object"),
        ('{"distances": [0, 1.5], "counts": [1, 1]}', "not all numbers are integers"),
        ('{"distances": [0, 1], "counts": [1, 9223372036854775808]}', "less than 2"),
        ('{"distances": [-1, 0], "counts": [1, 1]}', "ascend from 0"),
        ('{"distances": [1], "counts": [1]}', "ascend from 0"),
        ('{"distances": [0, 2, 2], "counts": [1, 1, 1]}', "ascend from 0"),
        ('{"distances": [], "counts": []}', "ascend from 0"),
        ('{"distances": [0, 1], "counts": [1]}', "a count of at least 1"),
        ('{"distances": [0, 1], "counts": [1, 0]}', "a count of at least 1"),
    ],
)
def test_a_bad_profile_is_refused(tmp_path, content, fragment):
    path = tmp_path / "profile.json"
    path.write_text(content)
    with pytest.raises(UserError, match=fragment) as error:
        StackProfile.load(path)
    assert str(path) in str(error.value)


def test_a_trace_is_read(tmp_path):
    path = tmp_path / "trace.txt"
    path.write_text(f"5\n-3\n5\n{2**63 - 1}")
    np.testing.assert_array_equal(read_trace(path), [5, -3, 5, 2**63 - 1])


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "is empty"),
        (b"1\n\n2\n", "line 2"),
        (b"1\n2\nthree\n", "line 3.*'three'"),
        (b"1.5\n", "line 1"),
        (b"1\n9223372036854775808\n", "line 2"),
        (b"\xff\n", "line 1"),
    ],
)
def test_a_bad_trace_is_refused(tmp_path, content, fragment):
    path = tmp_path / "trace.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=fragment):
        read_trace(path)


def test_an_empty_trace_has_no_profile():
    with pytest.raises(UserError, match="at least one access"):
        StackProfile.measure(np.array([], np.int64))
