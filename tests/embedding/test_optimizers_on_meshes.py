"""Every optimizer on every placement against its dense formula, and its state on disk."""

import inspect
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracle import FORMULAS, new_slots

from dlrm_jax.embedding import (
    SGD,
    Adagrad,
    Adam,
    EmbeddingCollection,
    Feature,
    Lookup,
    RowOptax,
    RowWiseAdagrad,
    Table,
    automatic_plan,
)
from dlrm_jax.embedding.optimizer import OPTIMIZERS, row_optimizer
from dlrm_jax.embedding.row_optax import as_row_optimizer
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.training import saved_tables, serialization
from dlrm_jax.training.checksums import LoadedSums, SavedSums
from dlrm_jax.training.metadata import FORMAT

PLACEMENTS = ("replicated", "table_wise", "row_wise", "column_wise")
ROWS, DIM, BATCH, STEPS = 11, 8, 16, 4
FEATURES = [Feature(name, 2) for name in PLACEMENTS]
LOOKUPS = [Lookup(name, name, name) for name in PLACEMENTS]
RATE = 0.05


def schedule(count):
    return RATE / (1 + count)


def ftrl(rate: float, beta: float = 1.0, l1: float = 0.01) -> optax.GradientTransformation:
    """FTRL-Proximal (McMahan et al., 2013): its values follow from its sums alone."""

    def init(params):
        return {"z": -params * beta / rate, "n": jnp.zeros_like(params)}

    def update(g, state, params: Any) -> Any:
        n = state["n"] + g**2
        z = state["z"] + g - (jnp.sqrt(n) - jnp.sqrt(state["n"])) / rate * params
        shrunk = jnp.sign(z) * jnp.maximum(jnp.abs(z) - l1, 0)
        return -shrunk * rate / (beta + jnp.sqrt(n)) - params, {"z": z, "n": n}

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def row_by_row(optimizer, rate=lambda t: RATE, start=0.0):
    """The oracle's formula of an optimizer, its state in the order of the slots."""
    name = next(name for name, made in OPTIMIZERS.items() if made is type(optimizer))
    formula = FORMULAS[name]

    def init(w):
        slots = new_slots(name, w)
        return [slots[key] + start for key in optimizer.slots]

    def update(w, state, g, t):
        w, slots = w.copy(), dict(zip(optimizer.slots, state, strict=True))
        for row in range(len(w)):
            formula.update(w, slots, row, g[row], rate(t), formula.eps, t + 1)
        return w, state

    return optimizer, init, update


OURS = {name: row_by_row(row_optimizer(name, RATE)) for name in OPTIMIZERS} | {
    "adagrad_from_0.3": row_by_row(Adagrad(RATE, initial_accumulator=0.3), start=0.3),
    "rowwise_from_0.3": row_by_row(RowWiseAdagrad(RATE, initial_accumulator=0.3), start=0.3),
    "adam": row_by_row(Adam(schedule), schedule),
}
OPTAX = {
    "momentum": optax.sgd(RATE, momentum=0.9, nesterov=True),
    "adamw": optax.adamw(RATE, weight_decay=0.1),
    "rmsprop": optax.rmsprop(RATE, centered=True, momentum=0.9),
    "adabelief": optax.adabelief(RATE),
    "nadamw": optax.nadamw(schedule, weight_decay=0.1),
    "adagrad": optax.adagrad(RATE, initial_accumulator_value=0.2),
    "chain": optax.chain(
        optax.clip(0.5),
        optax.add_decayed_weights(0.1),
        optax.scale_by_amsgrad(),
        optax.scale_by_schedule(schedule),
        optax.scale(-1.0),
    ),
    "injected": optax.inject_hyperparams(optax.lion)(learning_rate=schedule, b1=0.8),
    "schedule_free": optax.contrib.schedule_free_adamw(RATE, warmup_steps=2),
    "ftrl": ftrl(RATE),
}


def dense_optax(transform):
    step = jax.jit(transform.update)

    def update(w, state, g, t):
        updates, state = step(jnp.asarray(g), state, jnp.asarray(w))
        return w + np.asarray(updates), state

    return lambda w: transform.init(jnp.asarray(w)), update


CASES = OURS | {
    f"optax_{name}": (transform, *dense_optax(transform)) for name, transform in OPTAX.items()
}


def collection(optimizer, shape, turn=0, dtype="float64") -> EmbeddingCollection:
    """Tables named by their placements, or placed as the table so many places further."""
    mesh = make_mesh(shape)
    placed = {name: PLACEMENTS[(i + turn) % len(PLACEMENTS)] for i, name in enumerate(PLACEMENTS)}
    tables = [Table(name, ROWS, DIM, dtype) for name in PLACEMENTS]
    plan = automatic_plan(tables, mesh.shape["model"], placed, optimizer=optimizer)
    return EmbeddingCollection(tables, FEATURES, LOOKUPS, mesh, optimizer, plan, kernels="jax")


def batches(seed=0, steps=STEPS):
    """Ids of each step that name every row, and the cotangents of the pooled vectors."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        ids = np.stack(
            [rng.permutation(np.arange(2 * BATCH) % ROWS) for _ in PLACEMENTS], axis=1
        ).reshape(2, BATCH, -1)
        ids = ids.transpose(1, 2, 0).reshape(BATCH, -1).astype(np.int32)
        yield ids, {name: rng.normal(size=(BATCH, DIM)) for name in PLACEMENTS}


def weights():
    rng = np.random.default_rng(3)
    return {name: rng.uniform(-0.3, 0.3, (ROWS, DIM)) for name in PLACEMENTS}


def drawn(tables: EmbeddingCollection):
    """A state of the `weights`; drawing initial ones would be one more program for each slab."""
    given = weights()
    return tables.from_arrays(lambda table: {"table": given[table.name]}, 0)


def train(tables: EmbeddingCollection, state, given, first=0):
    """The states after each step."""

    @jax.jit
    def step(state, ids, cotangents, count):
        _, residuals = tables.lookup(state, ids)
        return tables.update(state, residuals, cotangents, count)

    states = []
    for count, (ids, cotangents) in enumerate(given, first):
        state = step(state, ids, jax.tree.map(jnp.asarray, cotangents), np.int32(count))
        states.append(jax.block_until_ready(state))
    return states


def arrays_of(tables: EmbeddingCollection, state) -> dict[str, dict[str, np.ndarray]]:
    return {
        table.name: {key: np.asarray(x) for key, x in arrays.items()}
        for table, arrays in tables.to_arrays(state)
    }


# State per row, per element and of scalars, a schedule, and none of them.
ON_ONE_DEVICE = ["rowwise_from_0.3"]
# Two of the project's, and state under several names and that begins with the rows.
ON_MANY_DEVICES = ["rowwise_from_0.3", "adam", "optax_chain", "optax_schedule_free"]


def on(shape, name):
    often = ON_MANY_DEVICES if shape == "2x4" else ON_ONE_DEVICE
    return pytest.param(shape, name, marks=() if name in often else pytest.mark.thorough)


@pytest.mark.parametrize(("shape", "name"), [on(x, name) for x in ("2x4", "1x1") for name in CASES])
def test_rows_touched_in_every_step_follow_the_dense_optimizer(shape, name):
    optimizer, init, update = CASES[name]
    given, dense, states = list(batches()), weights(), {}
    with jax.enable_x64(True):
        for i, table in enumerate(PLACEMENTS):
            states[table] = init(dense[table])
            for step, (ids, cotangents) in enumerate(given):
                gradient = np.zeros((ROWS, DIM))
                np.add.at(gradient, ids[:, 2 * i : 2 * i + 2], cotangents[table][:, None])
                dense[table], states[table] = update(dense[table], states[table], gradient, step)
        tables = collection(optimizer, shape)
        found = arrays_of(tables, train(tables, drawn(tables), given)[-1])
    for table in PLACEMENTS:
        slots = as_row_optimizer(optimizer, name).slots  # in the order of the leaves
        expected = [dense[table], *jax.tree.leaves(states[table])]
        assert len(found[table]) == len(expected)
        for key, leaf in zip(["table", *slots], expected, strict=True):
            np.testing.assert_allclose(found[table][key], leaf, rtol=1e-9, atol=1e-12)


OTHERS = {  # a mesh and how the placements turn
    "rowwise_from_0.3": ("1x8", 2),
    "optax_nadamw": ("4x2", 1),
    "optax_injected": ("1x1", 0),
}


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("optax_nadamw", ["optax_nadamw"]),
        *(pytest.param(x, [x], marks=pytest.mark.thorough) for x in OTHERS if x != "optax_nadamw"),
        *(pytest.param(x, {*OTHERS} - {x}, marks=pytest.mark.thorough) for x in OTHERS),
    ],
)
def test_training_goes_on_from_arrays_on_another_mesh_and_plan(name, others):
    optimizer, given = CASES[name][0], list(batches(1))
    with jax.enable_x64(True):
        tables = collection(optimizer, "2x4")
        states = train(tables, drawn(tables), given)
        half, expected = (arrays_of(tables, state) for state in (states[1], states[-1]))
        for shape, turn in (OTHERS[other] for other in others):
            moved = collection(optimizer, shape, turn)
            state = moved.from_arrays(lambda table: half[table.name], 0)
            for table, arrays in arrays_of(moved, state).items():
                for key, x in arrays.items():
                    np.testing.assert_array_equal(x, half[table][key])
            found = arrays_of(moved, train(moved, state, given[2:], first=2)[-1])
            for table, arrays in expected.items():
                for key, x in arrays.items():
                    np.testing.assert_allclose(found[table][key], x, rtol=1e-9, atol=1e-12)


def test_scalars_are_saved_and_read_with_each_table(tmp_path):
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=schedule)
    tables = collection(optimizer, "2x4", dtype="float32")
    state = train(tables, drawn(tables), batches(steps=3))[-1]
    written = arrays_of(tables, state)
    assert written["row_wise"]["count"] == written["replicated"]["inner_state_0_count"] == 3
    # Without the import hook: of a learner and its state they read no more than this.
    save, load = (inspect.unwrap(f) for f in (saved_tables.save_tables, serialization.load_rows))
    index = save(
        tmp_path / "tables",
        types.SimpleNamespace(collection=tables),
        types.SimpleNamespace(embedding=state),
        saved := SavedSums(),
    )
    metadata = {"format": FORMAT, "arrays": index, "checksums": saved.metadata()}
    sums = LoadedSums(tmp_path, metadata)
    other = collection(optimizer, "4x2", 1, "float32")
    restored = other.from_arrays(
        lambda table: load(tmp_path, metadata, table.name, other.array_specs(table.name), sums), 0
    )
    sums.check()
    for table, arrays in arrays_of(other, restored).items():
        assert arrays.keys() == written[table].keys()
        for key, x in arrays.items():
            assert (x.dtype, x.shape) == (written[table][key].dtype, written[table][key].shape)
            np.testing.assert_array_equal(x, written[table][key])


# Whatever tables lie in one slab.
@pytest.mark.parametrize(
    "turn", [0, *(pytest.param(x, marks=pytest.mark.thorough) for x in (1, 2, 3))]
)
def test_tables_of_one_optimizer_have_the_same_scalars(turn):
    whole = {name: {"table": x, "0_count": np.array(7)} for name, x in weights().items()}
    lacking = {name: {"table": x} for name, x in weights().items()}
    lacking["row_wise"] = whole["row_wise"]
    tables = collection(optax.adam(RATE), "2x4", turn, "float32")
    state = tables.from_arrays(lambda table: whole[table.name], 0)
    assert {x["0_count"].item() for x in arrays_of(tables, state).values()} == {7}
    with pytest.raises(UserError, match=r"same optimizer.* 0_count .* (7 and 0|0 and 7);"):
        tables.from_arrays(lambda table: lacking[table.name], 0)


@pytest.mark.parametrize("shape", [pytest.param("1x1", marks=pytest.mark.thorough), "2x4"])
def test_rows_that_are_not_touched_stay_while_counts_go_on(shape):
    tables = collection(optax.adamw(RATE, weight_decay=0.5), shape, dtype="float32")
    before = arrays_of(tables, drawn(tables))
    given = [(np.where(ids == 4, 5, ids), cotangents) for ids, cotangents in batches(steps=3)]
    after = arrays_of(tables, train(tables, drawn(tables), given)[-1])
    for name in PLACEMENTS:
        for key in ("table", "0_mu", "0_nu"):
            np.testing.assert_array_equal(after[name][key][4], before[name][key][4])
            rows = np.arange(ROWS) != 4
            assert np.all(np.any(after[name][key] != before[name][key], axis=1) == rows)
        assert after[name]["0_count"] == 3


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.thorough)])
def test_tables_of_16_bits_keep_their_state_in_float32(dtype):
    # Values that the narrow dtype has.
    values = {name: x.astype(jnp.dtype(dtype)).astype("f4") for name, x in weights().items()}
    expected, found = (
        arrays_of(c, train(c, state, batches(steps=2))[-1])
        for c in (collection(optax.adamw(RATE), "2x4", dtype=d) for d in ("float32", dtype))
        for state in [c.from_arrays(lambda t: {"table": values[t.name]}, 0)]
    )
    for table, arrays in found.items():
        assert arrays["table"].dtype == dtype
        assert {arrays[key].dtype.name for key in ("0_mu", "0_nu")} == {"float32"}
        np.testing.assert_allclose(arrays["0_mu"], expected[table]["0_mu"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            arrays["table"].astype("f4"), expected[table]["table"], atol=0.004
        )


def test_a_transform_may_be_the_collections_or_a_tables():
    tables = [
        Table("a", ROWS, DIM, optimizer=optax.sgd(RATE)),
        Table("b", ROWS, DIM, optimizer=SGD(RATE)),
        Table("c", ROWS, DIM),
    ]
    own = EmbeddingCollection(
        tables,
        [Feature("f")],
        [Lookup(t.name, "f", t.name) for t in tables],
        make_mesh("1x1"),
        RowOptax(optax.sgd(2 * RATE)),
    )
    state = own.init(0)
    ones = dict.fromkeys("abc", np.ones((8, DIM)))
    before = arrays_of(own, state)
    after = arrays_of(own, train(own, state, [(np.arange(8, dtype="i4")[:, None], ones)])[-1])
    for name, rate in {"a": RATE, "b": RATE, "c": 2 * RATE}.items():
        moved = after[name]["table"] - before[name]["table"]
        np.testing.assert_allclose(moved[:8], -rate, rtol=1e-5)
        assert not np.any(moved[8:])
