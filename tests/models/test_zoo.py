"""Every model's forward pass against its paper's formula, written with loops in NumPy."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from zoo_formulas import (
    FIELDS,
    OPTIONS,
    WIDTH,
    B,
    D,
    built,
    check,
    example,
    f64,
    field_vectors,
    first_order,
    mlp,
)

from dlrm_jax.errors import UserError
from dlrm_jax.models.esmm import logit_of_product
from dlrm_jax.models.fields import Field
from dlrm_jax.models.zoo import MODELS

PAIR = FIELDS[:2]
HISTORY = [Field("user", WIDTH), Field("item", WIDTH), Field("seen", WIDTH, max_ids=3)]


def all_pairs(vectors):
    return sum(u @ w for u, w in itertools.combinations(vectors, 2))


def test_logistic_regression():
    model = built("logistic_regression")
    dense, vectors = example(kind=MODELS["logistic_regression"])
    check(model, dense, vectors, lambda x, v: first_order(model.first_order, x, v))


def test_fm():
    model = built("fm")

    def formula(x, v):
        return first_order(model.first_order, x, v) + all_pairs(
            field_vectors(model.field_vectors, x, v)
        )

    check(model, *example(kind=MODELS["fm"]), formula)


def test_wide_deep():
    model = built("wide_deep", top_mlp=(6, 1))

    def formula(x, v):
        deep = mlp(model.deep, np.concatenate([x, v["a"], v["b"], v["c"]]))
        return first_order(model.wide, x, v) + deep[0]

    check(model, *example(kind=MODELS["wide_deep"]), formula)


def test_deepfm():
    model = built("deepfm", top_mlp=(6, 1))

    def formula(x, v):
        fields = field_vectors(model.field_vectors, x, v)
        linear = first_order(model.first_order, x, v)
        return linear + all_pairs(fields) + mlp(model.deep, np.concatenate(fields))[0]

    check(model, *example(kind=MODELS["deepfm"]), formula)


def test_xdeepfm():
    model = built("xdeepfm", top_mlp=(6, 1), cin=(3, 2))

    def formula(x, v):
        fields = field_vectors(model.field_vectors, x, v)
        m, rows, sums = len(fields), fields, []
        for weight, width in zip(model.cin.weights, (3, 2), strict=True):
            w = f64(weight).reshape(len(rows), width, m)
            places = [(i, j) for i in range(len(rows)) for j in range(m)]
            rows = [
                np.sum([w[i, h, j] * rows[i] * fields[j] for i, j in places], axis=0)
                for h in range(width)
            ]
            sums += [np.sum(row) for row in rows]
        deep = mlp(model.deep, np.concatenate(fields))[0]
        return first_order(model.linear, x, v) + np.array(sums) @ f64(model.cin_output)[:, 0] + deep

    check(model, *example(kind=MODELS["xdeepfm"]), formula)


def test_dcn():
    model = built("dcn", top_mlp=(6, 1), layers=2)

    def formula(x, v):
        first = crossed = np.concatenate([x, v["a"], v["b"], v["c"]])
        for layer in model.cross:
            crossed = first * (crossed @ f64(layer.weight)[:, 0]) + f64(layer.bias) + crossed
        deep = mlp(model.deep, first, last_relu=True)
        return mlp(model.output, np.concatenate([crossed, deep]))[0]

    check(model, *example(), formula)


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("structure", ["stacked", "parallel"])
@pytest.mark.parametrize("bottom", [(), (4,)])
def test_dcn_v2(rank, structure, bottom):
    model = built("dcn_v2", bottom_mlp=bottom, top_mlp=(6, 1), layers=2, rank=rank,
                  structure=structure)  # fmt: skip

    def formula(x, v):
        x = mlp(model.bottom, x, last_relu=True)
        first = crossed = np.concatenate([x, v["a"], v["b"], v["c"]])
        for layer in model.cross:
            matrix = np.linalg.multi_dot([f64(f).T for f in reversed(layer.factors)]) if rank else (
                f64(layer.factors[0]).T)  # fmt: skip
            crossed = first * (matrix @ crossed + f64(layer.bias)) + crossed
        if structure == "stacked":
            return mlp(model.top, crossed)[0]
        deep = mlp(model.top, first, last_relu=True)
        return mlp(model.output, np.concatenate([crossed, deep]))[0]

    check(model, *example(), formula)
    assert all((3 in f[...].shape) == (rank == 3) for layer in model.cross for f in layer.factors)


def test_ncf():
    model = built("ncf", PAIR, 0, top_mlp=(6, 1))

    def formula(x, v):
        deep = mlp(model.mlp, np.concatenate([v["a.mlp"], v["b.mlp"]]), last_relu=True)
        return mlp(model.output, np.concatenate([v["a"] * v["b"], deep]))[0]

    check(model, *example(PAIR, 0, MODELS["ncf"]), formula)


def test_din():
    model = built("din", HISTORY, top_mlp=(6, 1), target="item", attention=(5,))
    dense, vectors = example(HISTORY, kind=MODELS["din"])
    vectors["seen"][1, 1:] = 0  # absent

    def formula(x, v):
        target = v["item"]
        attended = sum(
            mlp(model.attention["seen"], np.concatenate([e, target, e - target, e * target]))[0] * e
            for e in v["seen"]
        )
        return mlp(model.top, np.concatenate([x, v["user"], target, attended]))[0]

    check(model, dense, vectors, formula)


def test_dlrm_without_dense_features_is_linear_beside_its_products():
    model = built("dlrm", dense_features=0, bottom_mlp=(6, WIDTH), top_mlp=(6, 1))

    def formula(x, v):
        constant = mlp(model.bottom, x, last_relu=True)
        stack = [constant, v["a"], v["b"], v["c"]]
        products = [stack[i] @ stack[j] for i in range(4) for j in range(i)]
        return mlp(model.top, np.concatenate([constant, products]))[0]

    check(model, *example(dense_features=0), formula)


LABELS = ("clicked", "purchased", "returned")


def test_shared_bottom():
    model = built("shared_bottom", top_mlp=(6, 1), labels=LABELS, shared_mlp=(7, 5))

    def formula(x, v):
        shared = mlp(model.shared, np.concatenate([x, v["a"], v["b"], v["c"]]), last_relu=True)
        return [mlp(tower, shared)[0] for tower in model.towers.towers]

    check(model, *example(), formula)


def mixed(gate, x, experts):
    shares = np.exp(x @ f64(gate.weight))
    pairs = zip(shares / shares.sum(), experts, strict=True)
    return np.sum([share * each for share, each in pairs], axis=0)


def test_mmoe():
    model = built("mmoe", top_mlp=(6, 1), labels=LABELS, experts=2, expert_mlp=(7, 5))

    def formula(x, v):
        inputs = np.concatenate([x, v["a"], v["b"], v["c"]])
        experts = [mlp(expert, inputs, last_relu=True) for expert in model.experts.experts]
        pairs = zip(model.gates, model.towers.towers, strict=True)
        return [mlp(tower, mixed(gate, inputs, experts))[0] for gate, tower in pairs]

    check(model, *example(), formula)


def test_ple():
    options = {"levels": 2, "own_experts": 2, "shared_experts": 1, "expert_mlp": (5,)}
    model = built("ple", top_mlp=(6, 1), labels=LABELS[:2], **options)
    low, high = model.levels

    def experts(module, x):
        return [mlp(expert, x, last_relu=True) for expert in module.experts]

    def formula(x, v):
        inputs = np.concatenate([x, v["a"], v["b"], v["c"]])
        own = [experts(each, inputs) for each in low.own]
        shared = experts(low.shared, inputs)
        parts = [mixed(low.gates[h], inputs, own[h] + shared) for h in range(2)]
        common = mixed(low.shared_gate, inputs, own[0] + own[1] + shared)
        shared = experts(high.shared, common)
        logits = []
        for h, tower in enumerate(model.towers.towers):
            found = mixed(high.gates[h], parts[h], experts(high.own[h], parts[h]) + shared)
            logits.append(mlp(tower, found)[0])
        return logits

    check(model, *example(), formula)


def test_esmm():
    model = built("esmm", top_mlp=(6, 1), labels=LABELS)

    def formula(x, v):
        inputs = np.concatenate([x, v["a"], v["b"], v["c"]])
        product, logits = 1.0, []
        for tower in model.towers.towers:
            product *= 1 / (1 + np.exp(-mlp(tower, inputs)[0]))
            logits.append(np.log(product / (1 - product)))
        return logits

    check(model, *example(), formula)


@pytest.mark.parametrize(("a", "b", "wanted"), [(90.0, -50.0, -50.0), (30.0, 30.0, 29.306853)])
def test_a_product_of_probabilities_has_an_exact_logit(a, b, wanted):
    """In float32 σ(30) is 1, and σ(90) σ(-50) has no logit."""
    value, gradient = jax.value_and_grad(lambda a: logit_of_product(a, jnp.array([b]))[0])(
        jnp.array([a])
    )
    assert float(value) == pytest.approx(wanted, rel=1e-6)
    assert float(gradient[0]) == pytest.approx(0.5 if a == b else 0, abs=1e-6)


# Parts of PLE.
OFTEN_ALIKE = {"shared_bottom", "mmoe"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.thorough) if name in OFTEN_ALIKE else name
        for name in sorted(MODELS.keys() - OPTIONS.keys() - {"ncf", "din", "hstu", "stca"})
    ],
)
def test_bfloat16_leaves_logits_in_float32(name):
    kind: Any = MODELS[name]
    arguments = kind.__init__.__annotations__
    if "dtype" not in arguments:
        return
    options = {"bottom_mlp": (8, WIDTH), "top_mlp": (6, 1)}
    options = {key: value for key, value in options.items() if key in arguments}

    def logits_of(dense, vectors):
        return kind(D, FIELDS, **options, rngs=nnx.Rngs(0), dtype="bfloat16")(dense, vectors)

    logits = jax.eval_shape(logits_of, *example(kind=kind))
    assert logits.dtype == jnp.float32
    assert logits.shape == (B,)  # of one label, also by models that take several


@pytest.mark.parametrize(
    ("name", "fields", "options", "message"),
    [
        ("fm", [Field("a", 4), Field("b", 3)], {}, r"vectors of one width, got \{'a': 4, 'b': 3\}"),
        ("wide_deep", FIELDS, {"top_mlp": (4, 2)}, r"must end in 1, the logit; got \(4, 2\)"),
        ("ncf", FIELDS, {"top_mlp": (4, 1)}, "for two fields.*got 3 and 2"),
        ("din", FIELDS, {"top_mlp": (4, 1), "target": "a"}, "needs a history"),
        ("din", HISTORY, {"top_mlp": (4, 1), "target": "seen"}, "one id .*, got 'seen'"),
        ("din", [*HISTORY[:2], Field("seen", 3, 2)], {"top_mlp": (4, 1), "target": "item"},
         "as wide as their target"),
        ("mmoe", FIELDS, {"top_mlp": (4, 1), "experts": 0}, "experts: expected at least 1, got 0"),
        ("ple", FIELDS, {"top_mlp": (4, 1), "levels": 0}, "levels: expected at least 1, got 0"),
        ("dlrm", FIELDS, {"bottom_mlp": (), "top_mlp": (4, 1)}, "at least one layer, got none"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(name, fields, options, message):
    with pytest.raises(UserError, match=message):
        MODELS[name](D, fields, rngs=nnx.Rngs(0), **options)  # pyright: ignore
