"""Ranking models since 2018 that cross fields: their formulas with loops in NumPy."""

from typing import Any

import numpy as np
import pytest
from zoo_formulas import (
    COUNT,
    WIDTH,
    built,
    by_channel,
    check_model,
    f64,
    field_vectors,
    first_order,
    layer_norm,
    made,
    mlp,
    normalized,
    side_by_side,
    sigmoid,
)


def autoint(model, fields):
    for layer in model.layers:
        query, key, value, residual = (
            f64(w).T for w in (layer.query, layer.key, layer.value, layer.residual)
        )
        out = []
        for m in range(len(fields)):
            heads = []
            for h in (slice(0, 3), slice(3, 6)):
                scores = np.exp([(query[h] @ fields[m]) @ (key[h] @ e) for e in fields])
                shares = scores / scores.sum()
                heads.append(sum(a * (value[h] @ e) for a, e in zip(shares, fields, strict=True)))
            y = np.concatenate(heads) + residual @ fields[m]
            y = layer_norm(layer.norm, y) if hasattr(layer, "norm") else y
            out.append(np.maximum(y, 0))
        fields = out
    return np.concatenate(fields) @ f64(model.output)[:, 0] + f64(model.bias)


@pytest.mark.parametrize("norm", [True, False])
def test_autoint(norm):
    model = built("autoint", head_width=3, layer_norm=norm)

    def formula(x, v):
        return autoint(model, field_vectors(model.field_vectors, x, v))

    check_model("autoint", model, formula)


def test_autoint_plus():
    model = made("autoint_plus")

    def formula(x, v):
        fields = field_vectors(model.field_vectors, x, v)
        deep = mlp(model.deep, np.concatenate(fields))[0]
        return autoint(model, fields) + deep + first_order(model.first_order, x, v)

    check_model("autoint_plus", model, formula)


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
    check_model("afn", model, lambda x, v: afn(model, x, v))


def test_afn_plus():
    model = made("afn_plus")

    def formula(x, v):
        deep = mlp(model.deep, np.concatenate(field_vectors(model.deep_vectors, x, v, ".deep")))
        return mlp(model.output, np.stack([afn(model, x, v), deep[0]]))[0]

    check_model("afn_plus", model, formula)


def masked(block, v, h):
    (layer,) = block.layer.layers
    h = (mlp(block.mask, v) * h) @ f64(layer.kernel) + f64(layer.bias)
    return np.maximum(layer_norm(block.layer.norms[0], h), 0)


@pytest.mark.parametrize("structure", ["serial", "parallel"])
@pytest.mark.parametrize("vector_norm", [True, False])
def test_masknet(structure, vector_norm):
    more: dict[str, Any] = {"structure": structure, "vector_norm": vector_norm, "mask_ratio": 0.5}
    if structure == "parallel":
        more |= {"blocks": 2, "block_width": 3}
    model = made("masknet", **more)

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

    check_model("masknet", model, formula)
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

    check_model("finalmlp", model, formula)


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

    check_model("finalnet", model, formula)


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

    check_model("gdcn", model, formula)


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

    check_model("fcn", model, formula)
