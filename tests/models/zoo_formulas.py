"""Models with drawn parameters, and parts of their formulas, written with loops in NumPy."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dlrm_jax.models.fields import Field, Model
from dlrm_jax.models.zoo import MODELS

B, D, WIDTH = 5, 2, 4
FIELDS = [Field(name, WIDTH) for name in ("a", "b", "c")]
COUNT = D + len(FIELDS)
# Of models since 2018, for these fields.
OPTIONS: dict[str, dict[str, Any]] = {
    "autoint_plus": {"top_mlp": (6, 1), "heads": 2, "head_width": 3},
    "afn": {"top_mlp": (6, 1), "neurons": 3},
    "afn_plus": {"top_mlp": (6, 1), "neurons": 3, "deep_mlp": (5,)},
    "masknet": {"top_mlp": (6, 5, 1)},
    "finalmlp": {"top_mlp": (6, 4, 1), "second_mlp": (6,), "heads": 2, "context_2": "b+c"},
    "finalnet": {"top_mlp": (6, 4, 1), "second_mlp": (4,)},
    "gdcn": {"top_mlp": (6, 1), "layers": 2},
    "fcn": {"exponential_layers": 2, "linear_layers": 3},
    "wukong": {"top_mlp": (6, 1), "fmb": 2, "lcb": 1, "rank": 2, "fmb_mlp": (5,)},
    "rankmixer": {"top_mlp": (6, 1), "tokens": 3, "token_width": 6, "expansion": 2},
    "ssr": {"top_mlp": (12, 1), "views": 2, "view_width": 5},
}


def built(name: str, fields=FIELDS, dense_features=D, **options) -> Any:
    """A model whose parameters are all drawn, so that zeros hide nothing."""
    graph, state = nnx.split(
        nnx.eval_shape(
            lambda: MODELS[name](dense_features, fields, rngs=nnx.Rngs(0), **options)  # pyright: ignore
        )
    )
    rng = np.random.default_rng(1)
    drawn = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), "float32"), state)
    return nnx.merge(graph, drawn)


def example(fields=FIELDS, dense_features=D, kind: type[Model] = Model):
    """Dense features and all that a model reads, drawn."""
    rng = np.random.default_rng(2)
    vectors = {}
    for field in fields:
        for read in kind.reads(field):
            shape = (field.max_ids,) * read.sequence + (read.width or field.width,)
            vectors[field.name + read.suffix] = rng.normal(0, 1, (B, *shape)).astype("float32")
    return rng.normal(0, 1, (B, dense_features)).astype("float32"), vectors


def f64(parameter) -> np.ndarray:
    return np.asarray(parameter[...], np.float64)


def mlp(module, x, last_relu=False):
    layers = list(module.layers)
    for i, layer in enumerate(layers):
        x = x @ f64(layer.kernel) + f64(layer.bias)
        if last_relu or i + 1 < len(layers):
            x = np.maximum(x, 0)
    return x


def check(model, dense, vectors, formula):
    """The formula is of one example: its dense features, and its vectors by name."""
    got = jax.jit(lambda dense, vectors: model(dense, vectors))(dense, vectors)
    wanted = [
        formula(dense[n].astype("f8"), {name: v[n].astype("f8") for name, v in vectors.items()})
        for n in range(B)
    ]
    assert np.ptp(wanted) > 0.01
    np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-4)


def field_vectors(module, x, v, suffix=""):
    table = f64(module.dense)
    return [v[name + suffix] for name in "abc"] + [x[j] * table[j] for j in range(D)]


def made(name: str, **changes) -> Any:
    """A model that predicts, whose running variances are positive."""
    model = built(name, **OPTIONS[name] | changes)
    for _, layer in nnx.iter_modules(model):
        if isinstance(layer, nnx.BatchNorm):
            layer.var[...] = jnp.abs(layer.var[...]) + 0.1
    model.eval()
    return model


def first_order(module, x, v):
    weights = [v[f"{name}.weight"][0] for name in "abc"]
    return sum(weights) + x @ f64(module.dense) + f64(module.bias)


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


def check_model(name: str, model, formula):
    check(model, *example(kind=MODELS[name]), formula)
