"""Which optax transforms tables take, and what is said of the others."""

import dataclasses
import functools
import itertools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlrm_jax.embedding import (
    SGD,
    Adagrad,
    Adam,
    EmbeddingCollection,
    Feature,
    Lookup,
    RowOptax,
    RowOptimizer,
    RowWiseAdagrad,
    Table,
    automatic_plan,
)
from dlrm_jax.embedding.by_value import optimizer_key
from dlrm_jax.embedding.row_optax import as_row_optimizer
from dlrm_jax.embedding.row_optimizer import mean_of_columns
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh


def transform(init: Any, update: Any) -> optax.GradientTransformation:
    return optax.GradientTransformation(init, update)


def stateless(update) -> optax.GradientTransformation:
    return transform(lambda params: (), lambda g, state, params: (update(g, params), state))


def late(step, **_):
    return jnp.asarray(step) >= 4


def rare(g, params):
    return jnp.where(jnp.abs(g).max() > 1e15, 0, g)


REFUSED = [
    (optax.clip_by_global_norm(1.0), "mixes rows. With gradients of row 2 0, the update at"),
    (optax.clip_by_global_norm(1e12), r"mixes rows. With gradients of row 2 1e\+18, the update"),
    (
        optax.chain(
            optax.conditionally_transform(optax.clip_by_global_norm(1.0), late), optax.sgd(0.1)
        ),
        "mixes rows. With gradients of row 2 .* after 10 steps",
    ),
    (stateless(rare), r"mixes rows. With gradients of row 2 1e\+18"),
    (optax.clip_by_block_rms(1.0), "mixes rows"),
    (optax.adaptive_grad_clip(0.1), "mixes rows"),
    (optax.normalize_by_update_norm(), "mixes rows"),
    (optax.lamb(0.1), "mixes rows"),
    (optax.lars(0.1), "mixes rows"),
    (optax.novograd(0.1), "mixes rows. With gradients of row 2 0, 0_mu"),
    (optax.apply_if_finite(optax.sgd(0.1), 5), "mixes rows. With gradients of row 2 inf, last_fin"),
    (optax.zero_nans(), "mixes rows. With gradients of row 2 nan, found_nan at all rows is 1"),
    (
        stateless(lambda g, p: g.at[:].set(jnp.all(p < 99))),
        r"mixes rows. With the values of row 2 1e",
    ),
    (stateless(lambda g, p: jnp.cumsum(g, axis=0)), "mixes rows. With the rows permuted"),
    (stateless(lambda g, p: g * jnp.arange(len(g))[:, None]), "mixes rows. With the rows perm"),
    (optax.centralize(), r"mixes the columns of a row. With gradients of element \(2, 1\) 0"),
    (stateless(lambda g, p: g / (1e-9 + jnp.abs(p).sum(1, keepdims=True))), "mixes the columns"),
    (stateless(lambda g, p: g / len(g)), "depends on the number of rows or columns, or on"),
    (stateless(lambda g, p: g * g.shape[1]), "depends on the number of rows or columns, or on"),
    (optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation(), r"\(MultiStepsState\)"),
    (optax.chain(optax.adam(0.1), optax.apply_every(9)), r"several steps \(ApplyEvery\)"),
    (optax.adafactor(0.1), r"got 0_v_row of shape \(1,\)"),
    (optax.sm3(0.1), r"got 0_mu_0 of shape \(6,\)"),
    (optax.contrib.muon(0.1), "expected a state of arrays of the rows' shape"),
    (optax.add_noise(0.1, 0.5, 0), "rng_key"),
    (optax.polyak_sgd(), "failed on rows of .* missing .* 'value'"),
    (
        transform(
            lambda p: {"big": jnp.zeros(p.shape if p.size < 100 else ())},
            lambda g, state, p: (g, state),
        ),
        r"its state differs between tables of shapes \(6, 4\) and \(1048576, 128\)",
    ),
    (
        transform(lambda p: (), lambda g, state, p: (g, (g,))),
        "failed on .* changes the structure of the state",
    ),
]


@pytest.mark.parametrize(("refused", "message"), REFUSED, ids=[m[:24] for _, m in REFUSED])
def test_what_is_not_elementwise_is_refused(refused, message):
    with pytest.raises(UserError, match=f"table ads: .*{message}"):
        Table("ads", 10, 4, optimizer=refused)


def test_the_state_is_told_apart():
    element, scalar = "element", "scalar"
    assert RowOptax(optax.sgd(0.1)).slots == {}
    assert RowOptax(optax.sgd(0.1, momentum=0.9)).slots == {"0_trace": element}
    assert RowOptax(optax.nadamw(optax.linear_schedule(0, 1, 9))).slots == {
        "0_count": scalar,
        "0_mu": element,
        "0_nu": element,
        "2_count": scalar,
    }
    injected = RowOptax(optax.inject_hyperparams(optax.rmsprop)(learning_rate=0.1)).slots
    assert injected["hyperparams_learning_rate"] == scalar
    assert injected["inner_state_0_nu"] == element


def test_transforms_and_schedules_are_compared_by_value():
    def transforms(rate=1e-3, steps=1000):
        schedule = optax.cosine_decay_schedule(rate, steps)
        piecewise = optax.piecewise_constant_schedule(rate, {10: 0.1, steps: 0.1})
        return [
            SGD(rate),
            SGD(schedule),
            Adam(schedule, eps=1e-6),
            Adagrad(functools.partial(optax.linear_schedule(rate, 0, steps))),
            RowWiseAdagrad(optax.join_schedules([schedule, piecewise], [steps])),
            RowWiseAdagrad(lambda step: jnp.asarray([rate, rate / 2])[step % 2]),
            RowOptax(optax.adamw(rate)),
            RowOptax(optax.chain(optax.clip(rate), optax.rmsprop(schedule))),
            RowOptax(optax.inject_hyperparams(optax.adam)(rate, b1=1 - 1 / steps)),
        ]

    made = transforms()
    keys = [optimizer_key(optimizer) for optimizer in made]
    for optimizer in made[1:3]:  # schedules of optax change what they hold when they are called
        optimizer.learning_rate(jnp.asarray(3))  # pyright: ignore
    assert keys == [optimizer_key(optimizer) for optimizer in made]
    assert keys == [optimizer_key(optimizer) for optimizer in transforms()]
    assert list(map(hash, keys)) == [hash(optimizer_key(optimizer)) for optimizer in transforms()]
    assert len(set(keys)) == len(keys)
    assert not set(keys) & {optimizer_key(optimizer) for optimizer in transforms(rate=1e-2)}
    other = {optimizer_key(optimizer) for optimizer in transforms(steps=1001)}
    assert len(set(keys) & other) == 3  # those that have no steps


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A schedule of one's own that holds another and an array."""

    schedule: object
    table: np.ndarray = dataclasses.field(hash=False, compare=True)

    def __call__(self, step):
        return self.schedule(step) * jnp.asarray(self.table)[step]  # pyright: ignore


def test_what_schedules_hold_is_compared_by_value():
    def scaled(end, numbers):
        return SGD(Scaled(optax.linear_schedule(1, end, 9), np.array(numbers)))

    assert optimizer_key(scaled(0, [1, 2])) == optimizer_key(scaled(0, [1, 2]))
    assert optimizer_key(scaled(0, [1, 2])) != optimizer_key(scaled(0, [1, 3]))
    assert optimizer_key(scaled(0, [1, 2])) != optimizer_key(scaled(0.5, [1, 2]))

    def recursive(base):
        def rate(step):
            return base if step is None else rate(None)

        return rate

    same = recursive(1.0)
    assert optimizer_key(SGD(same)) == optimizer_key(SGD(same))
    assert optimizer_key(SGD(recursive(1.0))) != optimizer_key(SGD(recursive(2.0)))
    counts = [object(), object()]
    assert optimizer_key(SGD(lambda step, x=counts[0]: 1.0)) != optimizer_key(
        SGD(lambda step, x=counts[1]: 1.0)
    )


def test_equal_optimizers_share_a_slab():
    def tables():
        for name in "abcd":
            schedule = optax.cosine_decay_schedule(1e-3, 1000)
            optimizer = optax.adam(schedule) if name < "c" else Adam(schedule)
            yield Table(name, 10, 4, optimizer=optimizer)

    made = list(tables())
    plan = automatic_plan(made, 4, dict.fromkeys("abcd", "row_wise"))
    collection = EmbeddingCollection(
        made, [Feature("f")], [Lookup(n, "f", n) for n in "abcd"], make_mesh("2x4"), plan=plan
    )
    assert [list(slab.tables) for slab in collection.layout.slabs] == [["a", "b"], ["c", "d"]]


@dataclasses.dataclass
class Melting(RowOptimizer):
    rate: float

    def update(self, gradients, slots, step, row_mean):
        return -self.rate * gradients, slots


@dataclasses.dataclass(frozen=True)
class Structural:
    slots: ClassVar = {}
    linear: ClassVar = True

    def update(self, gradients, slots, step, row_mean):
        return -gradients, slots


@dataclasses.dataclass(frozen=True)
class Rates(RowOptimizer):
    rates: object

    def update(self, gradients, slots, step, row_mean):
        return -gradients, slots


@dataclasses.dataclass(frozen=True)
class Named(Rates):
    slots: ClassVar = {"table": "row"}


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (Melting(0.1), r"Melting: expected a frozen .*; write @dataclasses.dataclass\(frozen=True"),
        (Rates([1, 2]), "Rates: expected .* but rates is a value of type list, which can't; use"),
        (Rates(jnp.ones(2)), "Rates: expected .* but rates is a value of type ArrayImpl"),
        (Structural(), r"expected a RowOptimizer .* got Structural\(\); derive optimizers of your"),
        (Adam, "expected a RowOptimizer .* got <class .*Adam'>"),
        ("adam", r"expected a RowOptimizer such as .* or an optax transform .* got 'adam'"),
        (Named(1), "slots: expected names other than table .* got table: row"),
    ],
)
def test_what_is_no_optimizer_is_refused(optimizer, message):
    with pytest.raises(UserError, match=f"^table ads: .*{message}"):
        as_row_optimizer(optimizer, "table ads")


def test_an_inherited_native_update_is_not_that_of_another_update():
    @dataclasses.dataclass(frozen=True)
    class Half(SGD):
        def update(self, gradients, slots, step, row_mean=mean_of_columns):
            return -0.5 * gradients, slots

    assert (SGD.native, RowWiseAdagrad.native, Half.native) == ("columns", "rows", None)
    assert (Adagrad.native, RowOptax.native) == (None, None)


def test_equal_transforms_are_probed_once():
    calls = itertools.count()

    def counted(scale):
        return stateless(lambda g, p: (next(calls), g * scale)[1])

    RowOptax(counted(2.0))
    first = next(calls)
    RowOptax(counted(2.0))
    assert next(calls) == first + 1
    RowOptax(counted(3.0))
    assert next(calls) > first + 2


def test_an_optimizer_without_an_update_says_so():
    with pytest.raises(NotImplementedError, match="RowOptimizer has neither update nor"):
        RowOptimizer().update(jnp.ones((1, 1)), {}, jnp.asarray(0), mean_of_columns)


def test_adagrads_refuse_a_negative_accumulator():
    for make in (Adagrad, RowWiseAdagrad):
        with pytest.raises(UserError, match=r"initial_accumulator: .* 0 or more, got -1"):
            make(0.1, initial_accumulator=-1.0)
    with jax.enable_x64(True):
        slots = RowWiseAdagrad(0.1, initial_accumulator=0.5).initial_slots(jnp.zeros((3, 2)))
    np.testing.assert_array_equal(slots["accumulator"], np.full(3, 0.5))
