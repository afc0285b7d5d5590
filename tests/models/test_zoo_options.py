"""Ranking models since 2018: batch sizes, bfloat16, zero vectors, and options that are refused."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export
from zoo_formulas import FIELDS, OPTIONS, D, example, made

from dlrm_jax.errors import UserError
from dlrm_jax.models.zoo import MODELS

PARALLEL = {"structure": "parallel"}
THOROUGH = pytest.mark.thorough


# By default, those with statistics of the batch, with attention, and with two towers.
@pytest.mark.parametrize(
    "name",
    [
        x if x in ("afn_plus", "autoint_plus", "finalmlp") else pytest.param(x, marks=THOROUGH)
        for x in OPTIONS
    ],
)
def test_batch_sizes_bfloat16_and_zero_vectors(name):
    """A logit depends on its example alone; no gradient of a row without ids is NaN."""
    model = made(name)
    dense, vectors = example(kind=MODELS[name])
    zero = {key: v.copy() for key, v in vectors.items()}
    for v in zero.values():
        v[0] = 0
    dense[0] = 0

    graph, state = nnx.split(model)

    def logits_of(state, dense, vectors):
        return nnx.merge(graph, state)(dense, vectors)

    @jax.jit
    def gradients(state, dense, vectors):
        def loss(state, vectors):
            logits = logits_of(state, dense, vectors)
            return jnp.sum(logits**2), logits

        return jax.grad(loss, (0, 1), has_aux=True)(state, vectors)

    found, logits = gradients(state, dense, zero)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(found))
    second = {key: v[1:2] for key, v in zero.items()}
    alone = jax.jit(logits_of)(state, dense[1:2], second)
    np.testing.assert_allclose(alone[0], logits[1], rtol=1e-5, atol=1e-6)

    kind: Any = MODELS[name]

    def short(dense, vectors):
        made = kind(D, FIELDS, **OPTIONS[name], rngs=nnx.Rngs(0), dtype="bfloat16")
        return made(dense, vectors)

    # As artifacts have it: one program for any number of rows.
    (rows,) = export.symbolic_shape("rows")
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), (dense, vectors)
    )
    logits = jax.eval_shape(short, *shapes)
    assert (logits.shape, logits.dtype) == ((rows,), jnp.float32)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("autoint_plus", {"head_width": 0}, "head_width: expected at least 1, got 0"),
        ("autoint_plus", {"attention_dropout": 1.0}, "attention_dropout: .* less than 1"),
        ("afn", {"neurons": 0}, "neurons: expected at least 1, got 0"),
        ("afn_plus", {"deep_dropout": 1.0}, "deep_dropout: .* less than 1, got 1.0"),
        ("masknet", PARALLEL | {"blocks": 0}, "blocks: expected at least 1, got 0"),
        ("masknet", PARALLEL | {"block_width": 0}, "block_width: expected at least 1, got 0"),
        ("masknet", {"block_width": 64}, "no effect with structure=serial"),
        ("masknet", {"blocks": 2}, "no effect with structure=serial"),
        (
            "masknet",
            {"mask_ratio": math.nan},
            "mask_ratio: expected a finite .*, got nan",
        ),
        ("masknet", {"top_mlp": (1,)}, r"needs the width of a block, got \(1,\)"),
        ("finalmlp", {"heads": 3}, "heads: .* divides the first MLP's last width, 4, got 3"),
        ("finalmlp", {"heads": 4}, "heads: .* divides the second MLP's last width, 6, got 4"),
        ("finalmlp", {"heads": 0}, "heads: .* divides .*, got 0"),
        ("finalmlp", {"second_dropout": -0.1}, "second_dropout: expected 0 or more.*, got -0.1"),
        ("finalmlp", {"context_1": "a+d*"}, r"context_1: .* of a, b, c; got 'd\*'"),
        ("finalnet", {"blocks": 3}, "blocks: expected 1 or 2, got 3"),
        ("finalnet", {"top_mlp": (1,)}, r"needs the width of a layer, got \(1,\)"),
        ("finalnet", {"second_mlp": (5,)}, r"even widths, got \(6, 4\) and \(5,\)"),
        ("finalnet", {"second_dropout": math.nan}, "second_dropout: expected 0 or more.*, got nan"),
        ("fcn", {"linear_layers": 0}, "linear_layers: expected at least 1, got 0"),
        ("fcn", {"heads": 3}, "2 · heads: .* divides the width of the vectors, 4, got 6"),
        ("fcn", {"linear_dropout": 1.5}, "linear_dropout: expected 0 or more.*, got 1.5"),
        ("wukong", {"rank": 0}, "rank: expected at least 1, got 0"),
        ("wukong", {"fmb": 0}, "fmb: expected at least 1, got 0"),
        ("rankmixer", {"token_width": 7}, "tokens: .* divides token_width, 7, got 3"),
        ("rankmixer", {"expansion": 0}, "expansion: expected at least 1, got 0"),
        (
            "ssr",
            {"view_width": 15},
            "view_width: expected at most 14, .* got 15; or give",
        ),
        ("ssr", {"iterations": 0}, "iterations: expected at least 1, got 0"),
        ("ssr", {"iterations": 9}, "iterations has no effect with filters=static"),
        ("ssr", {"filters": "dynamic", "filter_seed": 3}, "filter_seed has no effect"),
        ("finalmlp", {"gating": False, "gate_mlp": (8,)}, "no effect with gating=false"),
        ("finalmlp", {"gating": False, "context_1": "C1"}, "no effect with gating=false"),
        ("gdcn", {"layers": 0}, "layers: expected at least 1, got 0"),
        ("masknet", {"mask_ratio": math.inf}, "mask_ratio: expected a finite .*, got inf"),
    ],
)
def test_bad_options_are_refused(name, options, message):
    kind: Any = MODELS[name]
    with pytest.raises(UserError, match=message):
        kind(D, FIELDS, rngs=nnx.Rngs(0), **OPTIONS[name] | options)
