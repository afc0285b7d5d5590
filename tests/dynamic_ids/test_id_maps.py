"""The maps of a collection: which tables share one, absent ids, resets, and training by a model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlrm_jax.dynamic_ids.id_columns import ABSENT
from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.dynamic_ids.policy import DynamicIds
from dlrm_jax.embedding import Adagrad, EmbeddingCollection, Feature, Lookup, Table
from dlrm_jax.errors import UserError

IDS = DynamicIds(evict_share=0.01)


def collection(**changes) -> EmbeddingCollection:
    """Items of two widths, read by two features; users of their own; days that are rows."""
    tables = [
        Table("items", 20, 4, ids=IDS),
        Table("users", changes.get("users", 50), 4, ids=IDS),
        Table("items.weight", 20, 1, ids=IDS),
        Table("days", 7, 4),
    ]
    lookups = [
        Lookup("item", "item", "items"),
        Lookup("past", "past", "items"),
        Lookup("weight", "item", "items.weight"),
        Lookup("user", "user", "users"),
        Lookup("day", "day", "days"),
    ]
    features = [Feature("item"), Feature("day"), Feature("past", 2), Feature("user")]
    return EmbeddingCollection(tables, features, lookups, "1x1", Adagrad(0.1))


def test_tables_of_a_feature_and_features_of_a_table_share_a_map():
    maps = IdMaps(collection())
    assert maps.rows == {"items": 20, "users": 50}
    #      item  day  past   user
    ids = [[-7, 3, 2**62, -7, 900], [2**62, 0, -1, 5, 901], [-1, -1, -1, -1, -7]]
    ids = np.array(ids, np.int64)
    first = maps.translate(ids, 0)
    assert first.ids.tolist() == [[1, 3, 2, 1, 1], [2, 0, -1, 3, 2], [-1, -1, -1, -1, 3]]
    assert {name: rows.tolist() for name, rows in first.fresh.items()} == {
        "items": [1, 2, 3],
        "items.weight": [1, 2, 3],
        "users": [1, 2, 3],
    }
    again = maps.translate(ids, 1)
    np.testing.assert_array_equal(again.ids, first.ids)
    assert not any(rows.size for rows in again.fresh.values())


def test_ids_by_feature_and_unsigned_ones_are_the_same():
    maps, other = IdMaps(collection()), IdMaps(collection())
    by_feature = {
        "item": np.array([2**64 - 7, 2**63], np.uint64),
        "day": np.array([3, 0], np.int8),
        "past": np.array([[2**64 - 7], [5]], np.uint64),
        "user": [900, 901],
    }
    ids = np.array([[-7, 3, -7, -1, 900], [-(2**63), 0, 5, -1, 901]])
    found = maps.translate(by_feature, 0).ids
    np.testing.assert_array_equal(found, other.translate(ids, 0).ids)
    unsigned = ids.astype(np.int64).view(np.uint64)
    np.testing.assert_array_equal(maps.find(unsigned), found)


def test_looking_ids_up_changes_nothing_and_unknown_ones_read_a_default():
    maps = IdMaps(collection())
    maps.translate(np.array([[1, 0, 2, ABSENT, 3]]), 0)
    before = maps.arrays()
    found = maps.find(np.array([[2, 0, 1, 4, 4], [9, 0, ABSENT, ABSENT, 3]]))
    assert found.tolist() == [[2, 0, 1, 0, 0], [0, 0, -1, -1, 1]]
    same(maps.arrays(), before)


def same(left, right):
    assert left.keys() == right.keys()
    for name, arrays in left.items():
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, right[name][key])


def test_an_error_in_one_table_leaves_all_as_they_were():
    maps = IdMaps(collection(users=3))
    maps.translate(np.array([[1, 0, 2, 3, 4]]), 0)
    before = maps.arrays()
    ids = np.arange(100, 115).reshape(3, 5)
    ids[:, 1] = 0
    with pytest.raises(UserError, match=r"table users: .* 3 different ones, but it has 2"):
        maps.translate(ids, 1)
    same(maps.arrays(), before)


def test_records_take_a_copy_back():
    maps, rng, after, undos = IdMaps(collection()), np.random.default_rng(0), [], []
    for step in range(8):
        ids = rng.integers(5 * step, 5 * step + 8, (3, 5))
        ids[:, 1] = 0
        after.append(maps.arrays())
        undos.append(maps.translate(ids, step).undo)
    for step in range(8):
        same(maps.arrays(undos[step:]), after[step])
        same(maps.copy(undos[step:]).arrays(), after[step])
    before = maps.arrays()
    maps.copy().translate(np.array([[90, 0, 91, 92, 93]]), 8)
    same(maps.arrays(), before)


def test_bad_ids():
    maps = IdMaps(collection())
    for ids, message in (
        (np.zeros((2, 4), int), r"ids: expected \[B, 5\].*got \[2, 4\]"),
        (np.zeros((2, 5)), "array of integers.*float64"),
        (np.ma.masked_equal(np.zeros((2, 5), int), 0), "masked array"),
        (
            {"item": [1, 2], "day": [1, 2], "past": [[1], [1, 2]], "user": [1, 2]},
            "feature past: expected an array of integers, with -1 for absent ids, got .*inhomogen",
        ),
        (np.full((2, 5), 2**40), "rows of 32 bits.*1099511627776"),
        ({"item": np.zeros(2, int)}, "features item, day, past, user, got item"),
        (
            {"item": [1], "day": [1, 2], "past": [1], "user": [1]},
            "as many samples of each feature, got 1 of item, 2 of day",
        ),
        (
            {"item": [1], "day": [1], "past": np.zeros((1, 3), int), "user": [1]},
            "feature past: expected .* at most 2",
        ),
    ):
        with pytest.raises(UserError, match=message):
            maps.find(ids)


def test_maps_of_other_rows_or_tables_are_refused():
    arrays = IdMaps(collection()).arrays()
    with pytest.raises(UserError, match="users: expected a map of 40 rows, got one of 50"):
        IdMaps(collection(users=40)).load(arrays)
    with pytest.raises(UserError, match="users: expected a map, there is none"):
        IdMaps(collection()).load({"items": arrays["items"]})
    arrays["items"]["counts"][3] = 1
    arrays["items"]["counts"][4] = 1
    with pytest.raises(UserError, match=r"ids of table items: .* both belong to id 0"):
        IdMaps(collection()).load(arrays)


def test_contradictions():
    def made(tables, lookups):
        features = [Feature("item")]
        return EmbeddingCollection(tables, features, lookups, "1x1", Adagrad(0.1))

    one, two = Table("a", 20, 4, ids=IDS), Lookup("a", "item", "a")
    with pytest.raises(UserError, match="expected no id_map for a table with dynamic ids, a"):
        made([one], [Lookup("a", "item", "a", id_map=lambda ids: ids // 2)])
    for other in (
        Table("b", 20, 4),
        Table("b", 30, 4, ids=IDS),
        Table("b", 20, 4, ids=DynamicIds()),
    ):
        with pytest.raises(UserError, match="feature item: expected tables of equal rows and ids"):
            made([one, other], [two, Lookup("b", "item", "b")])
    with pytest.raises(UserError, match="expected one with dynamic ids"):
        IdMaps(made([Table("a", 20, 4)], [two]))


class Model:
    """Rows, vectors and accumulators of a table by id: the least recently seen one makes room."""

    def __init__(self, rows: int, first: np.ndarray):
        self.free, self.first = [*range(1, rows)], first
        self.seen: dict[int, tuple[int, int]] = {}  # when, and the row
        self.values: dict[int, np.ndarray] = {}
        self.sums: dict[int, np.ndarray] = {}

    def see(self, ids: list[int], now: int) -> None:
        known = [key for key in dict.fromkeys(ids) if key in self.seen]
        new = [key for key in dict.fromkeys(ids) if key not in self.seen]
        for key in known:
            self.seen[key] = now, self.seen[key][1]
        for _ in range(len(new) - len(self.free)):
            when, row = min(self.seen.values())
            assert when < now
            (oldest,) = (key for key, value in self.seen.items() if value == (when, row))
            del self.seen[oldest], self.values[oldest], self.sums[oldest]
            self.free.append(row)
        self.free.sort()
        for key in new:
            self.seen[key] = now, self.free.pop(0)
            self.values[key], self.sums[key] = self.first.copy(), np.zeros(len(self.first))

    def update(self, gradients: dict[int, np.ndarray], rate: float) -> None:
        for key, gradient in gradients.items():
            self.sums[key] += gradient**2
            self.values[key] -= rate * gradient / (np.sqrt(self.sums[key]) + 1e-8)


@pytest.mark.parametrize("mesh", ["1x1", "2x4"])
def test_training_with_evictions_is_that_of_a_model_by_id(mesh):
    """Map, reset and Adagrad, with the loss that each batch had."""
    rows, dim, samples = 30, 4, 16
    first = np.linspace(0.1, 0.4, dim)
    with jax.enable_x64(True):
        table = Table(
            "items",
            rows,
            dim,
            "float64",
            init=lambda key, shape, dtype: jnp.broadcast_to(jnp.asarray(first, dtype), shape),
            ids=IDS,
        )
        tables = EmbeddingCollection(
            [table],
            [Feature("item", 2)],
            [Lookup("item", "item", "items")],
            mesh,
            Adagrad(0.1, eps=1e-8),
        )
        maps, state, model = IdMaps(tables), tables.init(0), Model(rows, first)

        def loss_fn(pooled, labels):
            return jnp.mean((pooled["item"].sum(axis=1) - labels) ** 2)

        @jax.jit
        def step(state, ids, number, labels):
            loss, _, gradients = tables.value_and_grad(loss_fn, ())(state, ids, labels)
            return tables.apply(state, gradients, number), loss

        rng, lost = np.random.default_rng(0), 0
        for number in range(40):
            ids = 2 * number + rng.integers(0, 25, (samples, 2))
            ids[rng.random(ids.shape) < 0.2] = ABSENT
            ids = np.where(ids == ABSENT, ABSENT, ids * 0x9E3779B97F4A7)
            labels = rng.normal(size=samples)
            translated = maps.translate(ids, number)
            state = tables.reset_rows(state, translated.fresh, 0, number)
            state, loss = step(state, tables.put(translated.ids), number, labels)

            before = set(model.seen)
            model.see(ids[ids != ABSENT].tolist(), number)
            lost += len(before - model.seen.keys())
            sums = [
                sum((model.values[k] for k in bag if k != ABSENT), np.zeros(dim))
                for bag in ids.tolist()
            ]
            errors = np.array([x.sum() for x in sums]) - labels
            np.testing.assert_allclose(float(loss), np.mean(errors**2), rtol=1e-9)
            gradients: dict[int, np.ndarray] = {}
            for bag, error in zip(ids.tolist(), errors, strict=True):
                for key in bag:
                    if key != ABSENT:
                        own = gradients.setdefault(key, np.zeros(dim))
                        own += 2 * error / samples
            model.update(gradients, 0.1)

        assert lost > 40
        found = {x.name: own for x, own in tables.to_arrays(state)}["items"]
        for key, (_, row) in model.seen.items():
            assert maps.maps["items"].find(np.array([key])) == row
            np.testing.assert_allclose(found["table"][row], model.values[key], rtol=1e-9)
            np.testing.assert_allclose(found["accumulator"][row], model.sums[key], rtol=1e-9)
