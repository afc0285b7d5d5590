"""Ranking models since 2019: formulas with loops in NumPy, batch sizes, zero vectors, refusals."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export
from zoo_formulas import (
    FIELDS,
    OPTIONS,
    WIDTH,
    D,
    built,
    check,
    example,
    f64,
    field_vectors,
    mlp,
)

from dlrm_jax.errors import UserError
from dlrm_jax.models.ssr import drawn_columns
from dlrm_jax.models.zoo import MODELS

COUNT = D + len(FIELDS)


def made(name: str, **changes) -> Any:
    """A model that predicts, whose running variances are positive."""
    model = built(name, **OPTIONS[name] | changes)
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, nnx.BatchNorm):
            layer.var[...] = jnp.abs(layer.var[...]) + 0.1
    model.eval()
    return model


def compare(name: str, model, formula):
    check(model, *example(kind=MODELS[name]), formula)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def normalized(x, scale, bias, mean=None, var=None):
    mean = np.mean(x) if mean is None else mean
    var = np.var(x) if var is None else var
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias


def layer_norm(module, x):
    return normalized(x, f64(module.scale), f64(module.bias))


def by_channel(module, rows):
    """Batch normalization in predictions, with a scale and a bias for each row."""
    parts = [f64(x) for x in (module.scale, module.bias, module.mean, module.var)]
    return [normalized(row, *(part[i] for part in parts)) for i, row in enumerate(rows)]


def side_by_side(x, v):
    return np.concatenate([x, v["a"], v["b"], v["c"]])


def afn(model, x, v):
    fields = field_vectors(model.field_vectors, x, v)
    layer = model.logarithmic
    logarithms = [np.log(np.maximum(np.abs(e), 1e-5)) for e in fields]
    logarithms = by_channel(layer.log_norm, logarithms)
    weight = f64(layer.weight)
    products = [
        np.exp(sum(weight[i, j] * logarithms[i] for i in range(COUNT)))
        for j in range(weight.shape[1])
    ]
    return mlp(model.top, np.concatenate(by_channel(layer.norm, products)))[0]


def test_afn():
    model = made("afn")
    compare("afn", model, lambda x, v: afn(model, x, v))


def test_afn_plus():
    model = made("afn_plus")

    def formula(x, v):
        deep = mlp(model.deep, np.concatenate(field_vectors(model.deep_vectors, x, v, ".deep")))
        return mlp(model.output, np.stack([afn(model, x, v), deep[0]]))[0]

    compare("afn_plus", model, formula)


def masked(block, v, h):
    (layer,) = block.layer.layers
    h = (mlp(block.mask, v) * h) @ f64(layer.kernel) + f64(layer.bias)
    return np.maximum(layer_norm(block.layer.norms[0], h), 0)


@pytest.mark.parametrize("structure", ["serial", "parallel"])
@pytest.mark.parametrize("vector_norm", [True, False])
def test_masknet(structure, vector_norm):
    more = {"structure": structure, "vector_norm": vector_norm, "mask_ratio": 0.5}
    model = made("masknet", blocks=2, block_width=3, **more)

    def formula(x, v):
        fields = field_vectors(model.field_vectors, x, v)
        inputs = h = np.concatenate(fields)
        if vector_norm:
            scale, bias = f64(model.vector_norm.scale), f64(model.vector_norm.bias)
            h = np.concatenate([normalized(e, scale[i], bias[i]) for i, e in enumerate(fields)])
        if structure == "parallel":
            h = np.concatenate([masked(block, inputs, h) for block in model.blocks])
        else:
            for block in model.blocks:
                h = masked(block, inputs, h)
        return mlp(model.top, h)[0]

    compare("masknet", model, formula)
    assert model.blocks[0].mask.layers[0].out_features == COUNT * WIDTH // 2


@pytest.mark.parametrize("gating", [True, False])
def test_finalmlp(gating):
    without: Any = {} if gating else {"gate_mlp": (64,), "context_1": "", "context_2": ""}
    model = made("finalmlp", gating=gating, **without)

    def formula(x, v):
        one = other = side_by_side(x, v)
        if gating:
            learned, context = model.gates
            one = 2 * sigmoid(mlp(learned.gate, f64(learned.learned)[0])) * one
            other = 2 * sigmoid(mlp(context.gate, np.concatenate([v["b"], v["c"]]))) * other
        one, other = mlp(model.streams[0], one, True), mlp(model.streams[1], other, True)
        logit = mlp(model.fusion.linear, np.concatenate([one, other]))[0]
        weight = f64(model.fusion.weight)
        for h in range(2):
            logit += one[2 * h : 2 * h + 2] @ weight[2 * h : 2 * h + 2] @ other[3 * h : 3 * h + 3]
        return logit

    compare("finalmlp", model, formula)


@pytest.mark.parametrize(
    ("blocks", "residual", "activation", "normalization", "gating"),
    [(2, "concat", "none", "none", True), (1, "sum", "relu", "batch", False)],
)
def test_finalnet(blocks, residual, activation, normalization, gating):
    options = {"residual": residual, "activation": activation, "normalization": normalization}
    model = made("finalnet", blocks=blocks, gating=gating, **options)

    def stack(layers, x):
        for layer in layers:
            a, b = np.split(mlp(layer.linear, x), 2)
            x = a + a * b if residual == "sum" else np.concatenate([a, a * b])
            x = np.array(by_channel(layer.norm, x)) if normalization == "batch" else x
            x = np.maximum(x, 0) if activation == "relu" else x
        return x

    def formula(x, v):
        fields = field_vectors(model.field_vectors, x, v)
        first = list(fields)
        if gating:
            weight, bias = f64(model.gate.weight), f64(model.gate.bias)
            gates = [sum(weight[j, i] * fields[j] for j in range(COUNT)) for i in range(COUNT)]
            first += [fields[i] * (gates[i] + bias[i]) for i in range(COUNT)]
        logits = [
            mlp(output, stack(block, np.concatenate(inputs)))[0]
            for output, block, inputs in zip(
                model.outputs, model.blocks, [first, fields][:blocks], strict=True
            )
        ]
        return np.mean(logits)

    compare("finalnet", model, formula)


@pytest.mark.parametrize("structure", ["stacked", "parallel"])
def test_gdcn(structure):
    model = made("gdcn", structure=structure)

    def formula(x, v):
        first = crossed = side_by_side(x, v)
        for layer in model.cross:
            gate = sigmoid(crossed @ f64(layer.gate))
            crossed = first * (crossed @ f64(layer.weight) + f64(layer.bias)) * gate + crossed
        if structure == "stacked":
            return mlp(model.deep, crossed)[0]
        deep = mlp(model.deep, first, last_relu=True)
        return mlp(model.output, np.concatenate([crossed, deep]))[0]

    compare("gdcn", model, formula)


@pytest.mark.parametrize("heads", [1, 2])
def test_fcn(heads):
    model = made("fcn", heads=heads)
    half = WIDTH // (2 * heads)

    def network(module, first, is_exponential):
        x = first
        for layer in module.layers:
            c = x @ f64(layer.weight)
            both = np.concatenate([c, c * np.maximum(layer_norm(layer.norm, c), 0)])
            x = (x if is_exponential else first) * (both + f64(layer.bias)) + x
        return mlp(module.output, x)[0]

    def formula(x, v):
        fields = field_vectors(model.field_vectors, x, v)
        logits = []
        for h in range(heads):
            starts = (2 * h * half, (2 * h + 1) * half)
            inputs = np.concatenate([e[start : start + half] for start in starts for e in fields])
            logits.append(network(model.exponential, inputs, True))
            logits.append(network(model.linear, inputs, False))
        return np.mean(logits)

    compare("fcn", model, formula)


def test_wukong():
    model = made("wukong", layers=2)

    def formula(x, v):
        rows = np.stack(field_vectors(model.field_vectors, x, v))
        for i, layer in enumerate(model.layers):
            products = (rows @ rows.T) @ f64(layer.compression)
            machine = mlp(layer.mlp, layer_norm(layer.inner_norm, products.reshape(-1)))
            found = np.concatenate([machine.reshape(2, WIDTH), f64(layer.linear).T @ rows])
            rows = found + (f64(layer.residual).T @ rows if i == 0 else rows)
            rows = np.stack([layer_norm(layer.norm, row) for row in rows])
        return mlp(model.top, rows.reshape(-1))[0]

    compare("wukong", model, formula)
    assert not hasattr(model.layers[1], "residual"), "both have three vectors"


def test_rankmixer():
    model = made("rankmixer", layers=2)
    tokens, part = 3, 2

    def each(module, rows):
        kernel, bias = f64(module.kernel), f64(module.bias)
        return [row @ kernel[t] + bias[t] for t, row in enumerate(rows)]

    def formula(x, v):
        inputs = np.append(side_by_side(x, v), 0)  # 14 numbers for three tokens
        rows = each(model.project, np.split(inputs, tokens))
        for block in model.blocks:
            s = []
            for h in range(tokens):
                mixed = np.concatenate([row[h * part : h * part + part] for row in rows])
                s.append(layer_norm(block.norms[0], mixed + rows[h]))
            after = each(block.down, [gelu(row) for row in each(block.up, s)])
            rows = [layer_norm(block.norms[1], a + b) for a, b in zip(after, s, strict=True)]
        return mlp(model.top, np.mean(rows, axis=0))[0]

    compare("rankmixer", model, formula)


@pytest.mark.parametrize(
    ("filters", "given"), [("static", {"filter_seed": 7}), ("dynamic", {"iterations": 3})]
)
def test_ssr(filters, given):
    model = made("ssr", filters=filters, **given)

    def filtered(module, layer, x, i):
        if filters == "static":
            return x[drawn_columns(len(x), 2, 5, (7, layer))[i]]
        z = np.maximum(mlp(module.projection, x)[5 * i : 5 * i + 5], 0)
        for rate in f64(module.rates)[:, i]:
            z = np.maximum(z - rate * np.mean(z), 0)
        return f64(module.scale)[i] * z

    def formula(x, v):
        views = [side_by_side(x, v)]
        for number, layer in enumerate(model.layers):
            x = np.concatenate(views)
            kernel, bias = f64(layer.fusion.kernel), f64(layer.fusion.bias)
            scale, shift = f64(layer.norm.scale), f64(layer.norm.bias)
            views = [
                normalized(
                    gelu(filtered(layer.filter, number, x, i) @ kernel[i] + bias[i]),
                    scale[i],
                    shift[i],
                )
                for i in range(2)
            ]
        return mlp(model.top, np.mean(views, axis=0))[0]

    compare("ssr", model, formula)


def test_columns_of_static_filters_never_change():
    """Weights in a checkpoint are of these columns."""
    drawn = drawn_columns(12, 2, 5, (7, 0))
    np.testing.assert_array_equal(drawn, [[3, 4, 6, 10, 11], [0, 1, 8, 9, 11]])
    assert all(len(set(row)) == 5 for row in drawn_columns(6, 40, 5, (0, 1)))
    counts = np.bincount(drawn_columns(6, 3000, 3, (1, 0)).reshape(-1))
    assert 1350 < counts.min() <= counts.max() < 1650


@pytest.mark.parametrize("name", OPTIONS)
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
        ("afn", {"neurons": 0}, "neurons of at least 1, got 0"),
        ("afn_plus", {"deep_dropout": 1.0}, "deep_dropout from 0 to less than 1, got 1.0"),
        ("masknet", {"blocks": 0}, "blocks of at least 1, got 0"),
        ("masknet", {"block_width": 0}, "block_width of at least 1, got 0"),
        ("masknet", {"mask_ratio": math.nan}, "mask_ratio above 0 and finite, got nan"),
        ("masknet", {"top_mlp": (1,)}, r"needs the width of a block, got \(1,\)"),
        ("finalmlp", {"heads": 3}, "heads that divides the first MLP's last width, 4, got 3"),
        ("finalmlp", {"heads": 4}, "heads that divides the second MLP's last width, 6, got 4"),
        ("finalmlp", {"heads": 0}, "heads that divides .*, got 0"),
        ("finalmlp", {"second_dropout": -0.1}, "second_dropout from 0 .*, got -0.1"),
        ("finalmlp", {"context_1": "a+d*"}, r"context_1: .* of a, b, c; got 'd\*'"),
        ("finalnet", {"blocks": 3}, "blocks of 1 or 2, got 3"),
        ("finalnet", {"top_mlp": (1,)}, r"needs the width of a layer, got \(1,\)"),
        ("finalnet", {"second_mlp": (5,)}, r"even widths, got \(6, 4\) and \(5,\)"),
        ("finalnet", {"second_dropout": math.nan}, "second_dropout from 0 .*, got nan"),
        ("fcn", {"linear_layers": 0}, "linear_layers of at least 1, got 0"),
        ("fcn", {"heads": 3}, "2 · heads that divides the width of the vectors, 4, got 6"),
        ("fcn", {"linear_dropout": 1.5}, "linear_dropout from 0 .*, got 1.5"),
        ("wukong", {"rank": 0}, "rank of at least 1, got 0"),
        ("wukong", {"fmb": 0}, "fmb of at least 1, got 0"),
        ("rankmixer", {"token_width": 7}, "tokens that divides token_width, 7, got 3"),
        ("rankmixer", {"expansion": 0}, "expansion of at least 1, got 0"),
        ("ssr", {"view_width": 15}, "view_width of at most 14, .* got 15; or give filters=dynamic"),
        ("ssr", {"iterations": 0}, "iterations of at least 1, got 0"),
        ("ssr", {"iterations": 9}, "iterations has no effect with filters=static"),
        ("ssr", {"filters": "dynamic", "filter_seed": 3}, "filter_seed has no effect"),
        ("finalmlp", {"gating": False, "gate_mlp": (8,)}, "no effect with gating=false"),
        ("finalmlp", {"gating": False, "context_1": "C1"}, "no effect with gating=false"),
        ("gdcn", {"layers": 0}, "layers of at least 1, got 0"),
        (
            "masknet",
            {"mask_ratio": float("inf")},
            "mask_ratio above 0 and finite, got inf",
        ),
    ],
)
def test_bad_options_are_refused(name, options, message):
    kind: Any = MODELS[name]
    with pytest.raises(UserError, match=message):
        kind(D, FIELDS, rngs=nnx.Rngs(0), **OPTIONS[name] | options)
