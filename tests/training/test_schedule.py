import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_jax.embedding import SGD
from dlrm_jax.training.schedule import WarmupDecay

STEPS = 64


def plainly(s, base, warmup, start, steps):
    """The rate of step s, from 1."""
    if s < warmup:
        return base * s / warmup
    if not steps or s <= start:
        return base
    s = min(s, start + steps - 1)  # frozen at the last rate of the decay
    return max(base * ((steps - (s - start)) / steps) ** 2, 1e-7)


def rates(schedule, steps=STEPS):
    return jax.vmap(schedule)(jnp.arange(steps))


@settings(max_examples=60)
@given(
    st.floats(1e-3, 10),
    st.integers(0, 20),
    st.integers(0, 30),
    st.one_of(st.just(0), st.integers(1, 40)),
)
def test_every_step_has_the_rate_of_the_plain_statement(base, warmup, start, steps):
    expected = [plainly(s, base, warmup, start, steps) for s in range(1, STEPS + 1)]
    np.testing.assert_allclose(rates(WarmupDecay(base, warmup, start, steps)), expected, rtol=1e-5)


def test_the_rates_by_hand():
    decay = [2 * (3 / 4) ** 2, 2 * (2 / 4) ** 2, 2 * (1 / 4) ** 2]
    expected = [0.5, 1, 1.5, 2, 2, 2, *decay, 0.125, 0.125, 0.125]
    np.testing.assert_allclose(rates(WarmupDecay(2.0, 4, 6, 4), 12), expected, rtol=1e-6)
    np.testing.assert_array_equal(rates(WarmupDecay(2.0), 9), np.full(9, 2))


def test_the_decay_ends_at_the_floor():
    schedule = WarmupDecay(1e-3, 0, 0, 1_000)
    last = schedule(jnp.asarray(5_000))
    assert float(last) == pytest.approx(1e-7)


@pytest.mark.parametrize("base", [0.0, 1e-9])
def test_the_decay_raises_no_rate(base: float):
    """A rate of 0 freezes a table."""
    found = rates(WarmupDecay(base, 0, 3, 4), 9)
    assert max(found) == np.float32(base)
    assert np.all(np.diff(found) <= 0)


def test_jit_gives_the_same_and_compiles_once():
    schedule = WarmupDecay(0.7, 3, 5, 6)
    traces = []

    @jax.jit
    def rate(count):
        traces.append(1)
        return schedule(count)

    for count, expected in enumerate(rates(schedule, 15)):
        np.testing.assert_allclose(rate(jnp.asarray(count)), expected, rtol=1e-6)
    assert len(traces) == 1
    assert rate(jnp.asarray(0)).dtype == jnp.float32


def test_equal_schedules_are_one_key_and_make_equal_optimizers():
    one, same = WarmupDecay(0.1, 2, 3, 4), WarmupDecay(0.1, 2, 3, 4)
    assert one == same
    assert hash(one) == hash(same)
    assert SGD(one) == SGD(same)
    assert len({one, same, WarmupDecay(0.1, 2, 3, 5), WarmupDecay(0.1, 2, 3)}) == 3
