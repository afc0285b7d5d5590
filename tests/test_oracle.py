"""The oracle against finite differences and against numbers worked out by hand."""

from itertools import pairwise

import numpy as np
import pytest
from oracle import Oracle, OracleLookup, OracleTable, global_norm

DENSE = 3  # dense features a sample
B = 5


def mlp(rng, *widths):
    return [
        (rng.normal(size=(n_out, n_in)) / np.sqrt(n_in), 0.3 * rng.normal(size=n_out))
        for n_in, n_out in pairwise(widths)
    ]


def model(seed=0, *, pooling="sum", shared=False, interaction="dot", d1=4, **options):
    """Two features and three lookups; when shared, all of them read table "a"."""
    rng = np.random.default_rng(seed)
    optimizer = options.pop("optimizer", "sgd")
    tables = [
        OracleTable("a", rng.normal(size=(6, 4)), optimizer),
        OracleTable("b", rng.normal(size=(5, d1)), optimizer),
    ]
    lookups = [
        OracleLookup("l0", "f0", "a", pooling),
        OracleLookup("l1", "f1", "a" if shared else "b", pooling),
        OracleLookup("l2", "f0", "a", "mean"),
    ]
    F = 4  # x and three lookups
    dots = F * (F + 1) // 2 if options.get("self_interaction") else F * (F - 1) // 2
    z = 4 + dots if interaction == "dot" else 4 + 4 + (4 if shared else d1) + 4
    bottom, top = mlp(rng, DENSE, 5, 4), mlp(rng, z, 6, 1)
    return Oracle(tables, lookups, bottom, top, interaction=interaction, **options)


def batch(seed=1, *, weighted=False):
    """A batch with absent ids, an empty bag, and duplicates within and across samples."""
    rng = np.random.default_rng(seed)
    ids = {
        "f0": np.array([[1, 1, -1], [-1, -1, -1], [-1, 3, 1], [3, 0, 3], [2, -1, -1]]),
        "f1": np.array([[0, 2], [2, 2], [-1, 4], [1, 0], [-1, -1]]),
    }
    id_weights = {name: rng.uniform(0.2, 2, size=a.shape) for name, a in ids.items()}
    return {
        "dense": rng.normal(size=(B, DENSE)),
        "ids": ids,
        "labels": np.array([0, 1, 1, 0, 1]),
        "id_weights": id_weights if weighted else None,
        "sample_weights": rng.uniform(0.5, 2, size=B) if weighted else None,
    }


def one_table(rows=3, **options):
    """A model whose logit is x + e, with x = relu(dense) and e the pooled scalar."""
    lookup = OracleLookup("l", "f", "t", options.pop("pooling", "sum"))
    table = OracleTable("t", np.arange(1.0, rows + 1)[:, None], **options.pop("table", {}))
    bottom, top = [(np.eye(1), np.zeros(1))], [(np.ones((1, 2)), np.zeros(1))]
    return Oracle([table], [lookup], bottom, top, interaction="cat", **options)


CASES = {
    "dot": {},
    "dot_self": {"self_interaction": True},
    "cat": {"interaction": "cat", "d1": 3},
    "mse": {"loss": "mse", "class_weights": (0.7, 1.9)},
    "bce_class_weights": {"class_weights": (0.7, 1.9)},
    "mean": {"pooling": "mean"},
    "shared": {"shared": True},
    "shared_mean_cat": {"shared": True, "pooling": "mean", "interaction": "cat"},
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_finite_differences(case, weighted):
    oracle, data = model(**CASES[case]), batch(weighted=weighted)
    _, gradients = oracle.gradients(**data)

    pairs = []  # (parameter, its claimed gradient)
    for layers, slopes in ((oracle.bottom, gradients.bottom), (oracle.top, gradients.top)):
        for (W, b), (d_W, d_b) in zip(layers, slopes, strict=True):
            pairs += [(W, d_W), (b, d_b)]
    for name, table in oracle.tables.items():
        full = np.zeros_like(table.weights)  # rows without a gradient have gradient zero
        for row, g in gradients.tables[name].items():
            full[row] = g
        pairs.append((table.weights, full))

    h = 1e-6
    for parameter, claimed in pairs:
        measured = np.zeros_like(parameter)
        for at in np.ndindex(parameter.shape):
            value = parameter[at]
            parameter[at] = value + h
            above = oracle.gradients(**data)[0]
            parameter[at] = value - h
            below = oracle.gradients(**data)[0]
            parameter[at] = value
            measured[at] = (above - below) / (2 * h)
        np.testing.assert_allclose(claimed, measured, rtol=1e-6, atol=1e-9)
    assert all(np.any(claimed != 0) for _, claimed in pairs[:-2])


def test_gradient_rows_are_the_present_rows():
    _, gradients = model().gradients(**batch())
    assert set(gradients.tables["a"]) == {0, 1, 2, 3}
    assert set(gradients.tables["b"]) == {0, 1, 2, 4}
    _, gradients = model(shared=True).gradients(**batch())
    assert set(gradients.tables["a"]) == {0, 1, 2, 3, 4}
    assert gradients.tables["b"] == {}


@pytest.mark.parametrize(
    ("pooling", "weights", "expected"),
    [
        ("sum", None, [5.0, 0.0, 3.0]),
        ("mean", None, [5 / 3, 0.0, 3.0]),
        ("sum", [[1, 2, 3], [9, 9, 9], [9, 4, 9]], [3 + 2 + 3 * 1, 0.0, 12.0]),
        ("mean", [[1, 2, 3], [9, 9, 9], [9, 4, 9]], [8 / 6, 0.0, 3.0]),
        ("mean", [[1, 1, -2], [9, 9, 9], [9, 0, 9]], [0.0, 0.0, 0.0]),
    ],
)
def test_pooling_by_hand(pooling, weights, expected):
    oracle = one_table(pooling=pooling)
    ids = np.array([[2, 0, 0], [-1, -1, -1], [-1, 2, -1]])
    id_weights = None if weights is None else {"f": np.array(weights, float)}
    logits = oracle.forward(np.zeros((3, 1)), {"f": ids}, id_weights)
    np.testing.assert_allclose(logits, expected, rtol=1e-15)


@pytest.mark.parametrize(
    ("self_interaction", "dots"), [(False, [11, 17, 39]), (True, [5, 11, 25, 17, 39, 61])]
)
def test_dot_interaction_order_by_hand(self_interaction, dots):
    # x = (1, 2), e1 = (3, 4), e2 = (5, 6); the top layer reads one entry of z at a time.
    tables = [OracleTable("a", np.array([[3.0, 4.0]])), OracleTable("b", np.array([[5.0, 6.0]]))]
    lookups = [OracleLookup("la", "f", "a"), OracleLookup("lb", "f", "b")]
    z = []
    for selector in np.eye(2 + len(dots)):
        oracle = Oracle(
            tables,
            lookups,
            [(np.eye(2), np.zeros(2))],
            [(selector[None], np.zeros(1))],
            self_interaction=self_interaction,
        )
        z.append(oracle.forward(np.array([[1.0, 2.0]]), {"f": np.array([[0]])})[0])
    assert z == [1, 2, *dots]


def test_losses_by_hand_and_far_out():
    ids = {"f": np.array([[0], [-1]])}
    data = {"dense": np.zeros((2, 1)), "ids": ids, "labels": [0, 1], "sample_weights": [1, 3]}
    p = 1 / (1 + np.exp(-1))  # logits 1 and 0, labels 0 and 1
    bce = (1 * 2 * -np.log(1 - p) + 3 * 5 * np.log(2)) / 4
    assert one_table(class_weights=(2, 5)).gradients(**data)[0] == pytest.approx(bce, rel=1e-14)
    mse = (1 * 2 * p**2 + 3 * 5 * 0.25) / 4
    oracle = one_table(class_weights=(2, 5), loss="mse")
    assert oracle.gradients(**data)[0] == pytest.approx(mse, rel=1e-14)
    far = {"f": np.array([[-1], [-1]])}
    loss, _ = one_table().gradients(np.array([[2000.0], [2000.0]]), far, [0, 1])
    assert loss == 1000.0


def row_steps(optimizer, steps, *, eps=None, rate=0.5):
    """BCE steps at label 0 and x = 0 on one column; returns the oracle and each step's g."""
    oracle = one_table(table={"optimizer": optimizer, "learning_rate": rate, "eps": eps})
    slopes = []
    for ids in steps:
        data = {"dense": -np.ones((len(ids), 1)), "ids": {"f": np.array(ids)}}
        labels = np.zeros(len(ids))
        slopes.append(oracle.gradients(**data, labels=labels)[1].tables["t"])
        oracle.step(**data, labels=labels)
    return oracle, slopes


def test_adagrad_by_hand():
    # x = relu(-1) = 0; row 0 holds 1 and occurs twice in the first bag and once in the second.
    oracle, (rows, _) = row_steps("adagrad", [[[0, 0], [0, -1]], [[2, -1]]], eps=0.25)
    sigmoid = [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-1))]
    g = (2 * sigmoid[0] + sigmoid[1]) / 2  # batch mean of dBCE/dlogit at label 0, by occurrence
    assert rows[0].item() == pytest.approx(g, rel=1e-14)
    accumulator = oracle.slots["t"]["accumulator"]
    np.testing.assert_allclose(accumulator[0], [g**2], rtol=1e-14)
    weights = oracle.tables["t"].weights
    np.testing.assert_allclose(weights[0], [1 - 0.5 * g / (g + 0.25)], rtol=1e-14)
    assert (weights[1].item(), accumulator[1].item()) == (2.0, 0.0)


def test_rowwise_adagrad_shares_one_accumulator_a_row():
    oracle, data = model(optimizer="rowwise_adagrad"), batch()
    before = oracle.tables["a"].weights.copy()
    rows = oracle.gradients(**data)[1].tables["a"]
    oracle.step(**data)
    assert oracle.slots["a"]["accumulator"].shape == (6,)
    for row, g in rows.items():
        accumulator = (g[0] ** 2 + g[1] ** 2 + g[2] ** 2 + g[3] ** 2) / 4
        assert oracle.slots["a"]["accumulator"][row] == pytest.approx(accumulator, rel=1e-14)
        expected = before[row] - 0.1 * g / (np.sqrt(accumulator) + 1e-10)
        np.testing.assert_allclose(oracle.tables["a"].weights[row], expected, rtol=1e-14)
    np.testing.assert_array_equal(oracle.tables["a"].weights[4:], before[4:])


def test_adam_is_lazy_and_corrects_by_the_global_step():
    oracle, slopes = row_steps("adam", [[[0]], [[1]], [[0]]])
    g1, g3 = slopes[0][0].item(), slopes[2][0].item()
    m, v = 0.1 * g1, 0.001 * g1**2
    w = 1 - 0.5 * (m / 0.1) / (np.sqrt(v / 0.001) + 1e-8)
    m, v = 0.9 * m + 0.1 * g3, 0.999 * v + 0.001 * g3**2
    w -= 0.5 * (m / (1 - 0.9**3)) / (np.sqrt(v / (1 - 0.999**3)) + 1e-8)
    assert oracle.tables["t"].weights[0].item() == pytest.approx(w, rel=1e-12)
    assert oracle.slots["t"]["mean"][0].item() == pytest.approx(m, rel=1e-12)
    assert oracle.tables["t"].weights[2].item() == 3.0


def test_dense_adagrad_by_hand():
    oracle, data = model(dense_optimizer="adagrad", dense_learning_rate=0.3), batch()
    W, g = oracle.top[0][0].copy(), oracle.gradients(**data)[1].top[0][0]
    oracle.step(**data)
    np.testing.assert_allclose(oracle.top[0][0], W - 0.3 * g / (np.abs(g) + 1e-10), rtol=1e-12)


def test_clipping_scales_every_gradient():
    plain, data = model(), batch()
    norm = global_norm(plain.gradients(**data)[1])
    clipped, loose = model(clip_norm=norm / 4), model(clip_norm=norm * 1.01)
    start = model()
    for oracle in (plain, clipped, loose):
        oracle.step(**data)
    for read in (lambda o: o.tables["b"].weights, lambda o: o.bottom[0][0], lambda o: o.top[1][1]):
        move = read(plain) - read(start)
        np.testing.assert_allclose(read(clipped) - read(start), move / 4, atol=1e-15)
        np.testing.assert_array_equal(read(loose), read(plain))


def test_frozen_table_stays_and_is_not_in_the_norm():
    table = {"trainable": False, "optimizer": "adagrad"}
    oracle = one_table(table=table)
    data = {"dense": np.ones((1, 1)), "ids": {"f": np.array([[1]])}, "labels": [0]}
    p = 1 / (1 + np.exp(-3))  # x = 1, e = 2; top W (p, 2p), top b p, bottom W and b p
    assert global_norm(oracle.gradients(**data)[1]) == pytest.approx(np.sqrt(8) * p, rel=1e-14)
    oracle.step(**data)
    np.testing.assert_array_equal(oracle.tables["t"].weights, [[1], [2], [3]])
    assert oracle.slots["t"] == {}


def test_schedule():
    oracle = one_table(warmup=4, decay_start=6, decay_steps=4)
    rates = [oracle.rate(2.0, s) for s in range(1, 13)]
    decay = [2 * (3 / 4) ** 2, 2 * (2 / 4) ** 2, 2 * (1 / 4) ** 2]
    assert rates == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, *decay, 0.125, 0.125, 0.125]
    assert one_table().rate(2.0, 1) == one_table().rate(2.0, 1000) == 2.0


def test_step_uses_each_base_rate_of_the_schedule():
    oracle = one_table(warmup=2, dense_learning_rate=1.0, table={"learning_rate": 10.0})
    oracle.step(np.ones((1, 1)), {"f": np.array([[1]])}, [0])
    p = 1 / (1 + np.exp(-3))
    assert oracle.tables["t"].weights[1].item() == pytest.approx(2 - 5 * p, rel=1e-14)
    assert oracle.top[0][1].item() == pytest.approx(-0.5 * p, rel=1e-14)
