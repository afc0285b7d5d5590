"""The native MLP against NumPy in float64, whose operands are rounded as the kernels' are."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dlrm_jax.native import layers
from experiments.benchmarks.roofline import matrix_flops
from experiments.characterize.cost import class_costs
from experiments.characterize.hlo import Program


def rounded(x: np.ndarray, bfloat16: bool) -> np.ndarray:
    return x.astype(ml_dtypes.bfloat16 if bfloat16 else "f8").astype("f8")


def by_hand(shape, x, kernels, biases, cotangent):
    """The result, and the cotangents of x, kernels and biases."""
    kernels = [rounded(kernel, shape.bfloat16) for kernel in kernels]
    inputs, y = [rounded(x, shape.bfloat16)], x
    for kernel, bias, relu in zip(kernels, biases, shape.relus, strict=True):
        y = inputs[-1] @ kernel + bias
        y = np.maximum(y, 0) if relu else y
        inputs.append(rounded(y, shape.bfloat16))
    inputs[-1] = y
    back, d_kernels, d_biases = cotangent, [], []
    for i in reversed(range(len(kernels))):
        back = rounded(back * (inputs[i + 1] > 0) if shape.relus[i] else back, shape.bfloat16)
        d_kernels.insert(0, inputs[i].T @ back)
        d_biases.insert(0, back.sum(axis=0))
        back = back @ kernels[i].T
    return y, back, d_kernels, d_biases


def drawn(widths, samples, seed):
    rng = np.random.default_rng(seed)
    kernels = [rng.normal(size=pair) / pair[0] ** 0.5 for pair in itertools.pairwise(widths)]
    biases = [rng.normal(size=width) / 4 for width in widths[1:]]
    x, cotangent = rng.normal(size=(samples, widths[0])), rng.normal(size=(samples, widths[-1]))
    return jax.tree.map(np.float32, (x, kernels, biases, cotangent))


@jax.jit(static_argnums=0)
def both(shape, x, kernels, biases, cotangent):
    y, back = jax.vjp(lambda *given: layers.mlp(shape, *given), x, kernels, biases)
    return y, *back(cotangent)


@example(widths=[13, 512, 256, 64, 16], last=True, samples=129, bfloat16=True, short=True)
@example(widths=[367, 512, 256, 1], last=False, samples=600, bfloat16=True, short=False)
@example(widths=[367, 65, 1], last=False, samples=67, bfloat16=False, short=False)
@example(widths=[1, 1], last=True, samples=1, bfloat16=True, short=False)
@example(widths=[0, 5], last=True, samples=3, bfloat16=True, short=False)
@example(widths=[3, 4], last=True, samples=0, bfloat16=False, short=False)
@given(
    widths=st.lists(st.integers(1, 80), min_size=2, max_size=4),
    last=st.booleans(),
    samples=st.integers(0, 150),
    bfloat16=st.booleans(),
    short=st.booleans(),
)
def test_values_and_cotangents(widths, last, samples, bfloat16, short):
    if bfloat16 and not layers.supports_bfloat16():
        return
    relus = (*[True] * (len(widths) - 2), last)
    shape = layers.Shape(tuple(widths), relus, bfloat16)
    x, kernels, biases, cotangent = drawn(widths, samples, seed=samples)
    given = jnp.asarray(x, jnp.bfloat16 if bfloat16 and short else jnp.float32)
    found = both(shape, given, kernels, biases, cotangent)
    assert [a.dtype for a in found[:2]] == [jnp.float32, given.dtype]
    expected = by_hand(shape, np.asarray(given, "f4"), kernels, biases, cotangent)
    # No sum is larger than that of the numbers' sizes.
    sizes = jax.tree.map(np.abs, (np.asarray(given, "f4"), kernels, biases, cotangent))
    open_shape = layers.Shape(shape.widths, (False,) * len(relus), bfloat16)
    bounds = by_hand(open_shape, *sizes)
    # A number between two of bfloat16 may be rounded to the other one, as sums differ.
    tolerance = 1e-2 if bfloat16 else 1e-6
    for a, b, bound in zip(*map(jax.tree.leaves, (found, expected, bounds)), strict=True):
        assert (np.abs(np.asarray(a, "f8") - b) <= tolerance * bound + 1e-30).all()


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_same_bits_each_time_and_for_each_sample(bfloat16: bool):
    if bfloat16 and not layers.supports_bfloat16():
        pytest.skip("the processor doesn't multiply bfloat16")
    shape = layers.Shape((37, 70, 3), (True, False), bfloat16)
    given = drawn(shape.widths, 300, seed=1)
    first, again = both(shape, *given), both(shape, *given)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    x, kernels, biases, cotangent = given
    # 64 at a time: a block of samples of its own.
    few = both(shape, x[64:128], kernels, biases, cotangent[64:128])
    np.testing.assert_array_equal(few[0], first[0][64:128])
    np.testing.assert_array_equal(few[1], first[1][64:128])


@pytest.mark.parametrize("relu", [False, True])
def test_what_is_no_number_stays(relu: bool):
    for bfloat16 in {False, layers.supports_bfloat16()}:
        shape = layers.Shape((2, 3), (relu,), bfloat16)
        x, kernels, biases, cotangent = drawn(shape.widths, 40, seed=2)
        x[7, 1], x[9, 0] = np.nan, np.inf
        y = np.asarray(both(shape, x, kernels, biases, cotangent)[0])
        assert np.isnan(y[7]).all()
        assert not np.isfinite(y[9]).any() or relu
        assert np.isfinite(np.delete(y, [7, 9], axis=0)).all()


def loss(x, kernels, biases):
    return layers.mlp(layers.Shape((5, 8, 2), (True, False), False), x, kernels, biases).sum()


@pytest.mark.parametrize(
    ("by", "products"), [(0, 3 * 5 * 8 + 3 * 8 * 2), (1, 2 * 5 * 8 + 3 * 8 * 2)]
)
def test_its_operations_are_counted_in_functions_and_programs(by, products):
    x, kernels, biases, _ = drawn((5, 8, 2), 7, seed=3)
    function = jax.grad(loss, argnums=by)
    if by == 0:  # gradients of weights that nobody asks for are computed, too
        products = 3 * (5 * 8 + 8 * 2)
    assert matrix_flops(function, x, kernels, biases) == 2 * 7 * products
    program = Program(jax.jit(function).lower(x, kernels, biases).compile().as_text() or "")
    costs = class_costs(program, frozenset()).values()
    assert sum(cost.flops for cost in costs) >= 2 * 7 * products


def test_the_gradient_by_an_input_that_is_given_is_not_computed():
    x, kernels, biases, _ = drawn((5, 8, 2), 7, seed=3)
    for by, count in ((1, 4), (0, 5)):
        text = jax.jit(jax.grad(loss, argnums=by)).lower(x, kernels, biases).as_text()
        (line,) = [x for x in text.splitlines() if "@dlrm_jax_mlp_back" in x]
        assert line.split("->")[-1].count("tensor<") == count


@pytest.mark.parametrize("wrong", ["x", "kernel", "bias", "dtype"])
def test_arrays_of_other_shapes_are_refused(wrong):
    x, kernels, biases, _ = jax.tree.map(jnp.asarray, drawn((5, 8, 2), 7, seed=4))
    if wrong == "x":
        x = x[:, :4]
    elif wrong == "kernel":
        kernels[1] = kernels[1][:7]
    elif wrong == "bias":
        biases[0] = biases[0][:1]
    else:
        x = x.astype("bfloat16")
    with pytest.raises(ValueError, match=r"expected float32.* of shape .*, got "):
        loss(x, kernels, biases)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_what_fills_up_is_nothing_beside_an_infinity(bfloat16):
    if bfloat16 and not layers.supports_bfloat16():
        return
    shape = layers.Shape((2, 3, 1), (True, False), bfloat16)
    x = jnp.asarray([[np.inf, 1.0]] * 3, jnp.float32)
    kernels = [jnp.asarray([[-1, -2, -3], [1, 1, 1]], "f4"), jnp.ones((3, 1), "f4")]
    biases = [jnp.zeros(3, "f4"), jnp.asarray([0.5], "f4")]
    np.testing.assert_array_equal(layers.mlp(shape, x, kernels, biases), np.full((3, 1), 0.5))


@pytest.mark.parametrize("count", [1, 17, 33, 60])
def test_the_bits_of_a_sample_do_not_depend_on_its_place(count):
    shape = layers.Shape((70, 40, 3), (True, False), layers.supports_bfloat16())
    x, kernels, biases, _ = jax.tree.map(jnp.asarray, drawn(shape.widths, 100, seed=5))
    run = jax.jit(lambda x: layers.mlp(shape, x, kernels, biases))
    np.testing.assert_array_equal(run(x)[40 : 40 + count], run(x[40 : 40 + count]))


def test_one_mlp_for_each_of_several_weights():
    shape = layers.Shape((5, 8, 2), (True, False), layers.supports_bfloat16())
    given = [drawn(shape.widths, 7, seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *each: np.stack(each), *given)
    together = jax.jit(jax.vmap(lambda *each: both(shape, *each)))(*stacked)
    for i, each in enumerate(given):
        alone = both(shape, *each)
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_array_equal(a[i], b)
