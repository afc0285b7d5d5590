"""Ranking models since 2019 that mix vectors, tokens or views: formulas with loops in NumPy."""

import numpy as np
import pytest
from zoo_formulas import (
    WIDTH,
    check_model,
    f64,
    field_vectors,
    gelu,
    layer_norm,
    made,
    mlp,
    normalized,
    side_by_side,
)

from dlrm_jax.models.ssr import drawn_columns


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

    check_model("wukong", model, formula)
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

    check_model("rankmixer", model, formula)


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

    check_model("ssr", model, formula)


def test_columns_of_static_filters_never_change():
    """Weights in a checkpoint are of these columns."""
    drawn = drawn_columns(12, 2, 5, (7, 0))
    np.testing.assert_array_equal(drawn, [[3, 4, 6, 10, 11], [0, 1, 8, 9, 11]])
    assert all(len(set(row)) == 5 for row in drawn_columns(6, 40, 5, (0, 1)))
    counts = np.bincount(drawn_columns(6, 3000, 3, (1, 0)).reshape(-1))
    assert 1350 < counts.min() <= counts.max() < 1650
