"""Optimizers of users: what they may do, and what is said of the others."""

import dataclasses
import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlrm_jax.embedding import (
    SGD,
    EmbeddingCollection,
    Feature,
    Lookup,
    Plan,
    RowOptimizer,
    RowWiseAdagrad,
    Table,
)
from dlrm_jax.embedding.plan import column_wise, replicated, row_wise, table_wise
from dlrm_jax.embedding.row_optax import as_row_optimizer
from dlrm_jax.embedding.row_optimizer import mean_of_columns
from dlrm_jax.embedding.row_update import update_rows
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh

WHOLE = replicated("ads")


def own(update, **kinds) -> RowOptimizer:
    """An optimizer with this update, and slots of these kinds."""
    # Tests check the types of what `RowOptimizer.update_values` returns, so it is overridden.
    body = {"update_values": lambda self, values, *args: update(*args), "slots": kinds}
    return dataclasses.dataclass(frozen=True)(type("Mine", (RowOptimizer,), body))()


def place(optimizer, dim=4, pieces=WHOLE, shape="1x1") -> EmbeddingCollection:
    """A collection of one table with this optimizer."""
    return EmbeddingCollection(
        [Table("ads", 10, dim, optimizer=optimizer)],
        [Feature("f")],
        [Lookup("l", "f", "ads")],
        make_mesh(shape),
        plan=Plan(make_mesh(shape).shape["model"], pieces),
    )


def summed(gradients, slots, step, row_mean):
    seen = slots["seen"] + jnp.sum(gradients**2)
    return -gradients / jnp.sqrt(seen), {"seen": seen}


MIXED = [
    (own(summed, seen="scalar"), "it mixes rows. With gradients of row 2 0, seen at all rows is"),
    (
        own(lambda g, s, n, m: (-g, {"q": jnp.maximum(s["q"], jnp.abs(g).max())}), q="scalar"),
        "it mixes rows. With gradients of row 2 10000, q at all rows is",
    ),
    (own(lambda g, s, n, m: (g.mean(0) - g, s)), "it mixes rows"),
    (
        own(lambda g, s, n, m: (-g, {"q": s["q"] + jnp.abs(g).sum()}), q="row"),
        r"it mixes rows. .* q at \(0,\)",
    ),
    (
        own(lambda g, s, n, m: (-jnp.where(n >= 10, g.mean(0), g), s)),
        "mixes rows. .* after 10 steps",
    ),
    (
        own(lambda g, s, n, m: (-g * jnp.where(jnp.abs(g).max() < 0.1, 2.0, 1.0), s)),
        "mixes rows. .* after 3 steps",
    ),
    (own(lambda g, s, n, m: (-g / len(g), s)), "depends on the number of rows. With 3 of 6 rows,"),
]


@pytest.mark.parametrize(("optimizer", "message"), MIXED)
def test_an_update_that_mixes_rows_is_refused(optimizer, message):
    with pytest.raises(UserError, match=f"^table ads: optimizer Mine: .*{message}.*scalar slot on"):
        place(optimizer)


def test_columns_may_be_mixed_where_they_are_not_split():
    # As in clipping by the norm of a row, and with rates of columns.
    norms = own(lambda g, s, n, m: (-g / jnp.linalg.norm(g, axis=1, keepdims=True), s))
    rates = own(lambda g, s, n, m: (-g * jnp.arange(16.0), s))
    for pieces in (WHOLE, table_wise("ads", 1), row_wise("ads", range(2))):
        for optimizer in (norms, rates):
            place(optimizer, 16, pieces, "1x2")
    rule = "it depends on the number of rows or columns, or on columns otherwise than by row_mean"
    why = (
        r"columns of the table are split over 2 shards \(column_wise\), and an update gets 8 of 16"
    )
    for optimizer, message in ((norms, rule), (rates, r"failed on rows of shape \(3, 8\)")):
        with pytest.raises(UserError, match=f"table ads: optimizer Mine: {message}[^§]*{why}"):
            place(optimizer, 16, column_wise("ads", 2), "1x2")
    place(own(lambda g, s, n, m: (-g / m(g**2)[:, None], s)), 16, column_wise("ads", 2), "1x2")


def test_an_update_of_64_bits_is_no_error():
    with jax.enable_x64(True):
        place(own(lambda g, s, n, m: (-0.1 * jnp.minimum(1.0, (n + 1) / 100) * g, s)))


WRONG = [
    (own(lambda g, s, n, m: (-g[:1], s)), r"expected changes \[K, d\] of shape .*, got \(1, 4\)"),
    (own(lambda g, s, n, m: (-g[:, :1], s)), r"of shape \(6, 4\) .*, got \(6, 1\), float32"),
    (own(lambda g, s, n, m: (0.1, s)), r"expected changes \[K, d\] .*, got \(\), float32"),
    (own(lambda g, s, n, m: (g * 1j, s)), r"as float32, got \(6, 4\), complex64"),
    (own(lambda g, s, n, m: -g), r"Mine: expected changes \[K, d\] and a dict of slots"),
    (own(lambda g, s, n, m: None), r"and a dict of slots from its update, got None"),
    (own(lambda g, s, n, m: (-g, {}), q="row"), "expected the slots q from its update, got none"),
    (own(lambda g, s, n, m: (-g, {**s, "z": g}), q="row"), "expected the slots q .*, got q, z"),
    (own(lambda g, s, n, m: (-g, {"q": s["q"][:1]}), q="row"), r"slot q of shape \(6,\) .*\(1,\)"),
    (own(lambda g, s, n, m: (-g, {"q": g}), q="row"), r"slot q of shape \(6,\) .*, got \(6, 4\)"),
    (own(lambda g, s, n, m: (-g, {"q": 1j * s["q"]}), q="row"), r"slot q .* got \(6,\), complex64"),
    (own(lambda g, s, n, m: 1 / 0), "failed on rows of shape .* ZeroDivisionError: division by"),
    (own(lambda g, s, n, m: (-g, s), q="column"), "slots: expected names .* got q: column"),
    (type("Mine", (RowOptimizer,), {"slots": ["q"]})(), r"slots: expected a dict .* got \['q'\]"),
    (type("Mine", (RowOptimizer,), {})(), "Mine has neither update nor update_values"),
]


@pytest.mark.parametrize(("optimizer", "message"), WRONG, ids=[m for _, m in WRONG])
def test_an_update_of_the_wrong_form_is_refused(optimizer, message):
    with pytest.raises(UserError, match=f"^table ads: .*{message}"):
        place(optimizer)


def test_initial_slots_have_the_names_and_shapes_of_the_kinds():
    for wrong in ({"q": jnp.zeros(())}, {"z": jnp.zeros(6)}):
        optimizer = own(lambda g, s, n, m: (-g, s), q="row")
        object.__setattr__(optimizer, "initial_slots", lambda values, wrong=wrong: wrong)
        with pytest.raises(
            UserError, match=r"slots of shapes {'q': \(6,\)} from its initial_slots"
        ):
            place(optimizer)


def test_the_form_is_checked_where_rows_are_updated():
    optimizer = own(lambda g, s, n, m: (-g[:1], s))
    with pytest.raises(UserError, match=r"Mine: expected changes \[K, d\] of shape \(2, 3\)"):
        update_rows(
            optimizer, jnp.ones((5, 3)), {}, jnp.arange(2), jnp.ones((2, 3)), jnp.asarray(0)
        )


def test_numbers_of_other_real_dtypes_become_those_of_the_rows():
    def update(gradients, slots, step, row_mean):
        return -np.ones(gradients.shape), {"q": jnp.ones(len(gradients), jnp.int32)}

    optimizer = as_row_optimizer(own(update, q="row"), "optimizer")
    table, slots = jnp.ones((5, 3)), {"q": jnp.zeros(5)}
    new, slots = update_rows(
        optimizer, table, slots, jnp.asarray([1]), jnp.ones((1, 3)), jnp.asarray(0)
    )
    np.testing.assert_array_equal(new, [[1] * 3, [0] * 3, *[[1] * 3] * 3])
    np.testing.assert_array_equal(slots["q"], [0, 1, 0, 0, 0])
    assert slots["q"].dtype == jnp.float32


@dataclasses.dataclass(frozen=True)
class Warmed(RowOptimizer):
    """A scalar of itself and the step, a mean of a row, and decay of the rows."""

    rate: float = 0.1
    slots: ClassVar = {"warmth": "scalar", "square": "row"}

    def update_values(self, values, gradients, slots, step, row_mean):  # pyright: ignore
        warmth = slots["warmth"] + 1 / (step + 1)
        square = slots["square"] + row_mean(gradients**2)
        scale = self.rate * warmth / jnp.sqrt(square + 1e-8)
        change = -scale[:, None] * (gradients + 0.1 * values)
        return change, {"warmth": warmth, "square": square}


def test_a_scalar_of_the_step_is_the_same_everywhere():
    ids = np.random.default_rng(0).integers(0, 50, (8, 3)).astype(np.int32)
    found = []
    for mesh in map(make_mesh, ("1x1", "2x4")):
        shards = mesh.shape["model"]
        collection = EmbeddingCollection(
            [Table("a", 50, 4)],
            [Feature("x", 3)],
            [Lookup("l", "x", "a")],
            mesh,
            Warmed(),
            plan=Plan(shards, row_wise("a", range(shards))),
        )
        state = collection.init(0)
        pooled, residuals = jax.jit(collection.lookup)(state, collection.put(ids))
        state = jax.jit(collection.update)(state, residuals, pooled, 1)
        (slots,) = state.slots.values()
        assert {float(shard.data) for shard in slots["warmth"].addressable_shards} == {0.5}
        ((_, arrays),) = collection.to_arrays(state)
        found.append(arrays)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), *found)


def test_equal_optimizers_are_run_once_and_those_with_a_name_never():
    calls = itertools.count()

    @dataclasses.dataclass(frozen=True)
    class Counted(SGD):
        def update(self, gradients, slots, step, row_mean):
            next(calls)
            return super().update(gradients, slots, step, row_mean)

    place(Counted(0.1))
    first = next(calls)
    assert 0 < first < 10
    place(Counted(0.1))
    assert next(calls) == first + 1
    place(RowWiseAdagrad(lambda step: 1 / 0))


def test_an_optimizer_can_be_checked_while_a_function_is_traced():
    def traced(x):
        place(own(lambda g, s, n, m: (-3 * g, s)))
        return x

    with jax.debug_nans(True), jax.debug_infs(True):
        assert jax.jit(traced)(2.0) == 2.0


def test_an_update_that_would_not_be_called_is_refused():
    class Decayed(RowOptimizer):
        def update_values(self, values, gradients, slots, step, row_mean):  # pyright: ignore
            return self.update(gradients + 0.1 * values, slots, step, row_mean)

    class DecayedSGD(Decayed, SGD):
        pass

    body = {"update": lambda self, gradients, slots, step, row_mean: (-1000 * gradients, slots)}
    with pytest.raises(UserError, match=r"Mine: its update .* Decayed has an update_val"):
        type("Mine", (Decayed,), body)
    with pytest.raises(UserError, match="optimizer Mine: its update would never be called"):
        type("Mine", (type("Update", (), body), DecayedSGD), {})
    args = jnp.ones((1, 2)), jnp.ones((1, 2)), {}, jnp.asarray(0), mean_of_columns
    np.testing.assert_allclose(DecayedSGD(1.0).update_values(*args)[0], -1.1)
