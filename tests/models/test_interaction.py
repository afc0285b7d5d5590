import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from as_users import OPTIMIZED

from dlrm_jax.models.interaction import cat, dot, interaction_width


def inputs(batch, count, dim, dtype="float64", seed=0):
    """The dense vector and count - 1 pooled ones."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(batch, dim)).astype(dtype) for _ in range(count)]


def pairs(count, self_interaction):
    """(1,0), (2,0), (2,1), (3,0), … and with the diagonal (0,0), (1,0), (1,1), …."""
    return [(i, j) for i in range(count) for j in range(i + 1) if self_interaction or i != j]


def by_hand(x, vectors, self_interaction):
    """NumPy, one pair at a time."""
    stack = [x, *vectors]
    columns = [(stack[i] * stack[j]).sum(axis=1) for i, j in pairs(len(stack), self_interaction)]
    return np.concatenate([x, np.stack(columns, axis=1)], axis=1)


def naive(x, vectors, self_interaction):
    """As `by_hand`, for jax to differentiate."""
    stack = [x, *vectors]
    columns = [(stack[i] * stack[j]).sum(axis=1) for i, j in pairs(len(stack), self_interaction)]
    return jnp.concatenate([x, jnp.stack(columns, axis=1)], axis=1)


@pytest.mark.parametrize("self_interaction", [False, True])
@pytest.mark.parametrize("count", [2, 3, 9])
def test_dot_is_the_lower_triangle_in_row_major_order(count, self_interaction):
    x, *vectors = inputs(5, count, 4)
    with jax.enable_x64(True):
        z = dot(jnp.asarray(x), [jnp.asarray(v) for v in vectors], self_interaction)
        np.testing.assert_allclose(z, by_hand(x, vectors, self_interaction), rtol=1e-12)


def test_the_order_of_pairs_by_hand():
    x, e1, e2 = jnp.array([[1.0, 2]]), jnp.array([[3.0, 4]]), jnp.array([[5.0, 6]])
    np.testing.assert_array_equal(dot(x, [e1, e2]), [[1, 2, 11, 17, 39]])
    np.testing.assert_array_equal(dot(x, [e1, e2], True), [[1, 2, 5, 11, 25, 17, 39, 61]])


def test_cat_is_all_vectors_side_by_side():
    x, e1, e2 = jnp.array([[1.0, 2]]), jnp.array([[3.0]]), jnp.array([[4.0, 5, 6]])
    np.testing.assert_array_equal(cat(x, [e1, e2]), [[1, 2, 3, 4, 5, 6]])


@pytest.mark.parametrize("self_interaction", [False, True])
def test_the_gradient_is_jaxs_own_of_the_naive_form(self_interaction):
    with jax.enable_x64(True):
        x, *vectors = [jnp.asarray(v) for v in inputs(6, 5, 3)]
        z = naive(x, vectors, self_interaction)
        cotangent = jnp.asarray(np.random.default_rng(1).normal(size=z.shape))
        _, back = jax.vjp(lambda x, v: dot(x, v, self_interaction), x, vectors)
        _, expected = jax.vjp(lambda x, v: naive(x, v, self_interaction), x, vectors)
        for got, want in zip(
            jax.tree.leaves(back(cotangent)), jax.tree.leaves(expected(cotangent)), strict=True
        ):
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("self_interaction", [False, True])
def test_a_large_batch_is_right_in_float32(self_interaction):
    """Some releases of jaxlib miscompile fusions that only large batches get."""
    count, dim = 27, 16
    x, *vectors = inputs(8192, count, dim, "float32")
    i, j = np.array(pairs(count, self_interaction)).T
    cotangent = np.random.default_rng(1).normal(size=(8192, dim + len(i))).astype("f4")

    @functools.partial(jax.jit, compiler_options=OPTIMIZED)
    def both(x, vectors, cotangent):
        z, back = jax.vjp(lambda x, v: dot(x, v, self_interaction), x, vectors)
        return z, back(cotangent)

    z, (d_x, d_vectors) = jax.block_until_ready(both(x, vectors, cotangent))
    stack = np.stack([x, *vectors], axis=1).astype(np.float64)
    products = stack @ stack.transpose(0, 2, 1)
    np.testing.assert_allclose(z[:, :dim], x)
    np.testing.assert_allclose(z[:, dim:], products[:, i, j], rtol=1e-4, atol=1e-4)

    g = np.zeros_like(products)
    g[:, i, j] = cotangent[:, dim:]
    expected = (g + g.transpose(0, 2, 1)) @ stack
    expected[:, 0] += cotangent[:, :dim]
    got = np.stack([d_x, *d_vectors], axis=1)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("dim", "self_interaction", "published"),
    [(16, False, 367), (64, False, 415), (128, False, 479), (128, True, 506)],
)
def test_widths_are_the_published_ones(dim, self_interaction, published):
    assert interaction_width("dot", dim, [dim] * 26, self_interaction) == published
    x, *vectors = [jax.ShapeDtypeStruct((2, dim), jnp.float32)] * 27
    z = jax.eval_shape(lambda x, v: dot(x, v, self_interaction), x, vectors)
    assert z.shape == (2, published)


def test_the_width_of_cat_is_the_sum_of_widths():
    assert interaction_width("cat", 16, [4, 1, 16], False) == 37
