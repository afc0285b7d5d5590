import numpy as np
import pytest

from dlrm_jax.data.generated.zipf import bounded_zipf, cumulative_zipf


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.0 + 1e-9, 1.05, 2.0, 30.0])
def test_draws_follow_the_stated_distribution(exponent):
    rows, draws = 20, 200_000
    ids = bounded_zipf(np.random.default_rng(0), rows, exponent, (draws,))
    expected = np.diff(cumulative_zipf(np.arange(rows + 1), rows, exponent))
    assert expected.sum() == pytest.approx(1)
    assert (ids >= 0).all()
    observed = np.bincount(ids, minlength=rows) / draws
    np.testing.assert_allclose(observed, expected, atol=5 * 0.5 / draws**0.5)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
def test_probabilities_fall_as_a_power_of_the_rank(exponent):
    probabilities = np.diff(cumulative_zipf(np.arange(1001), 1000, exponent))
    ratio = probabilities[99] / probabilities[399]
    assert ratio == pytest.approx(4**exponent, rel=0.01)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.05])
@pytest.mark.parametrize("rows", [1, 2, 33_800_000, 2**31 - 1])
def test_tables_of_any_size(rows, exponent):
    ids = bounded_zipf(np.random.default_rng(0), rows, exponent, (1000, 3))
    assert ids.dtype == np.int32
    assert ids.shape == (1000, 3)
    assert ids.min() >= 0
    assert ids.max() < rows


def test_uniform_draws_reach_the_end_of_a_large_table():
    ids = bounded_zipf(np.random.default_rng(0), 2**31 - 1, 0.0, (1000,))
    assert ids.max() > 0.99 * 2**31
