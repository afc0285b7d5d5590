"""Encoders of histories in the zoo, against their formulas with loops in NumPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from zoo_formulas import WIDTH, B, D, built, check, example, f64, mlp

from dlrm_jax.errors import UserError
from dlrm_jax.models.fields import Field
from dlrm_jax.models.history_ranking import in_sequences
from dlrm_jax.models.zoo import MODELS

PLACES = 6
FIELDS = [Field("user", WIDTH), Field("item", WIDTH), Field("seen", WIDTH, max_ids=PLACES)]
LENGTHS = (6, 0, 3, 1, 5)


def drawn(name: str) -> tuple[Any, dict[str, Any]]:
    dense, vectors = example(FIELDS, kind=MODELS[name])
    for row, length in zip(vectors["seen"], LENGTHS, strict=True):
        row[length:] = 0  # absent
    vectors["seen"][4, 1] = 0  # an id among others whose vector is zero
    return jax.tree.map(jnp.asarray, (dense, vectors))


def oldest_first(history: np.ndarray, latest: str) -> np.ndarray:
    (there,) = np.nonzero(history.any(axis=1))
    present = history[: there[-1] + 1 if len(there) else 0]
    return present[::-1] if latest == "first" else present


def silu(x):
    return x / (1 + np.exp(-x))


def norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)


def linear(layer, x):
    return x @ f64(layer.kernel) + (0 if layer.bias is None else f64(layer.bias))


def swiglu(layer, x):
    y = norm(x)
    return norm(y + linear(layer.down, silu(linear(layer.gate, y)) * linear(layer.up, y)))


def fused(layer, found):
    joined = linear(layer.join, np.concatenate(found)) if layer.joins else found[0]
    return swiglu(layer.swiglu, joined)


def bucket(places: int) -> int:
    return int(np.log(np.float32(places)) / np.float32(0.301))


def stca(encoder, history, target):
    by_place = f64(encoder.by_place)
    x = np.array([e + by_place[bucket(len(history) - j)] for j, e in enumerate(history)])
    found = [target]
    for layer in encoder.layers:
        attended = np.zeros(WIDTH)
        if len(x):
            query = linear(layer.query, fused(layer.fusion, found))
            tokens = swiglu(layer.history, x)
            key, value = linear(layer.key, tokens), linear(layer.value, tokens)
            for own in (slice(0, 2), slice(2, 4)):
                weights = np.exp(key[:, own] @ query[own] / np.sqrt(2))
                attended[own] = weights @ value[:, own] / weights.sum()
        found.append(linear(layer.output, attended))
    return fused(encoder.result, found)


def hstu(encoder, history, target):
    x = np.concatenate([history.reshape(-1, WIDTH), target[None]])
    places = np.minimum(np.arange(len(x)), PLACES - 1)
    x = x * np.sqrt(WIDTH) + f64(encoder.hstu.positions.vectors)[places]
    for layer in encoder.hstu.layers:
        u, v, q, k = np.split(silu(norm(x) @ f64(layer.uvqk)), [6, 12, 16], axis=1)
        bias, attended = f64(layer.by_distance), np.zeros((len(x), 6))
        for i in range(len(x)):
            for j in range(i + 1):
                for head in range(2):
                    own, out = slice(2 * head, 2 * head + 2), slice(3 * head, 3 * head + 3)
                    score = q[i, own] @ k[j, own] + bias[min(i - j, PLACES - 1)]
                    attended[i, out] += silu(score) / PLACES * v[j, out]
        x = linear(layer.output, norm(attended) * u) + x
    return x[-1]


FORMULAS: dict[str, Any] = {"stca": stca, "hstu": hstu}
OPTIONS = {
    "stca": {"heads": 2, "hidden_width": 5, "layers": 2},
    "hstu": {"heads": 2, "attention_width": 2, "linear_width": 3, "layers": 2},
}


@pytest.mark.parametrize(
    ("name", "latest"),
    [
        ("stca", "last"),
        ("hstu", "first"),
        pytest.param("stca", "first", marks=pytest.mark.thorough),
        pytest.param("hstu", "last", marks=pytest.mark.thorough),
    ],
)
def test_formula(name: str, latest: str):
    model = built(name, FIELDS, top_mlp=(6, 1), target="item", latest=latest, **OPTIONS[name])

    def formula(x, v):
        history = oldest_first(v["seen"], latest)
        said = FORMULAS[name](model.encoders["seen"], history, v["item"])
        return mlp(model.top, np.concatenate([x, v["user"], v["item"], said]))[0]

    dense, vectors = jax.tree.map(np.asarray, drawn(name))
    check(model, dense, vectors, formula)


@pytest.mark.parametrize("name", ["stca", "hstu"])
def test_gradients_of_absent_places_are_zero_and_rows_are_apart(name: str):
    model = built(name, FIELDS, top_mlp=(6, 1), target="item", **OPTIONS[name])
    dense, vectors = drawn(name)
    weight = np.zeros(B, "f4")
    weight[2] = 1

    def of_row(history):
        return jnp.sum(weight * model(dense, {**vectors, "seen": history}))

    found = np.asarray(jax.jit(jax.grad(of_row))(vectors["seen"]))
    assert np.isfinite(found).all()
    assert np.abs(found[2, :3]).max(axis=1).min() > 1e-4
    np.testing.assert_array_equal(found[[0, 1, 3, 4]], 0)
    np.testing.assert_array_equal(found[2, 3:], 0)


@pytest.mark.parametrize("name", ["stca", "hstu"])
def test_the_order_counts(name: str):
    model = built(name, FIELDS, top_mlp=(6, 1), target="item", **OPTIONS[name])
    dense, vectors = drawn(name)
    run = jax.jit(lambda vectors: model(dense, vectors))
    logits = run(vectors)
    swapped = vectors["seen"].at[0].set(vectors["seen"][0, ::-1])
    other = run({**vectors, "seen": swapped})
    assert abs(other[0] - logits[0]) > 1e-4
    np.testing.assert_allclose(other[1:], logits[1:], rtol=1e-5)


def test_tokens_are_whole_blocks_and_those_without_an_id_are_filling():
    _, vectors = drawn("stca")
    for latest in ("first", "last"):
        tokens, sequences, _, of = in_sequences(vectors["seen"], latest, vectors["item"])
        assert tokens.shape == (64, WIDTH)
        np.testing.assert_array_equal(of.lengths, LENGTHS)
        for n, (first, end) in enumerate(zip(of.firsts.tolist(), of.ends.tolist(), strict=True)):
            expected = oldest_first(np.asarray(vectors["seen"][n]), latest)
            np.testing.assert_array_equal(tokens[first:end], expected.reshape(-1, WIDTH))
            np.testing.assert_array_equal(sequences.starts[first:end], first)
        assert int(sequences.present.sum()) == sum(LENGTHS)


@pytest.mark.parametrize("name", ["stca", "hstu"])
@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        (FIELDS[:2], {"target": "item"}, "needs a history: a field with several ids"),
        (FIELDS, {"target": "seen"}, r"expected a field of one id \(user, item\), got 'seen'"),
        (
            [*FIELDS[:2], Field("seen", 3, 4)],
            {"target": "item"},
            "needs histories as wide as their target",
        ),
        (FIELDS, {"target": "item", "layers": 0}, "layers: expected at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, fields, options, message: str):
    with pytest.raises(UserError, match=message):
        MODELS[name](D, fields, top_mlp=(4, 1), rngs=nnx.Rngs(0), **options)  # pyright: ignore


@pytest.mark.parametrize("name", ["stca", "hstu"])
def test_bfloat16_leaves_logits_in_float32(name: str):
    model = built(name, FIELDS, top_mlp=(4, 1), target="item", dtype="bfloat16")
    logits = jax.eval_shape(model, *drawn(name))
    assert (logits.shape, logits.dtype) == ((B,), jnp.float32)
