"""Tables in host memory, trained through caches, are those that were trained on the devices."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlrm_jax.embedding import (
    SGD,
    Adam,
    EmbeddingCollection,
    Feature,
    Lookup,
    RowWiseAdagrad,
    Table,
    automatic_plan,
)
from dlrm_jax.errors import UserError
from dlrm_jax.host_tables.cached_collection import CachedCollection, device_tables
from dlrm_jax.host_tables.host_rows import HostRows
from dlrm_jax.host_tables.row_feed import RowFeed
from dlrm_jax.mesh import make_mesh

TABLES = [
    Table("items", 400, 8, optimizer=RowWiseAdagrad(0.05)),
    Table("items.weight", 400, 1, optimizer=Adam(0.02)),
    Table("users", 300, 8, optimizer=Adam(0.02)),
    Table("days", 7, 8),
]
FEATURES = [Feature("item", 2), Feature("day"), Feature("user"), Feature("seen", 3)]
LOOKUPS = [
    Lookup("item", "item", "items"),
    Lookup("weight", "item", "items.weight"),
    Lookup("day", "day", "days"),
    Lookup("user", "user", "users", "mean"),
    Lookup("seen", "seen", "items", "none"),
    Lookup("seen.weight", "seen", "items.weight"),
]
CACHE = {"items": 96, "items.weight": 96, "users": 24}
PLANS = {
    "mixed": ["row_wise", "replicated", "row_wise", "table_wise"],
    "column_wise": ["column_wise", "row_wise", "column_wise", "replicated"],
    "fully_sharded": ["fully_sharded"] * 4,
}
B, STEPS = 16, 30


@dataclasses.dataclass(frozen=True)
class State:
    embedding: Any


def made(kind: Any, mesh: str, plan: str, tables=TABLES, **options: Any) -> Any:
    mesh_of = make_mesh(mesh)
    chosen = dict(zip([t.name for t in tables], PLANS[plan], strict=True))
    on_devices = device_tables(tables, options.get("cache_rows", {}))
    placed = automatic_plan(on_devices, mesh_of.shape["model"], chosen)
    return kind(tables, FEATURES, LOOKUPS, mesh_of, SGD(0.03), placed, **options)


@functools.cache
def batches() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    rows = np.array([400, 400, 7, 300, 400, 400, 400])
    found = []
    for _ in range(STEPS):
        ids = np.minimum(random.zipf(1.2, (B, 7)) - 1, rows - 1).astype(np.int32)
        ids = (ids * 37) % rows.astype(np.int32)  # the frequent ones aren't the first
        ids[random.random(ids.shape) < 0.2] = -1
        found.append(ids)
    return found


def make_step(collection: EmbeddingCollection) -> Any:
    def loss(pooled: Any) -> jax.Array:
        total = sum(jnp.sum(x, axis=tuple(range(1, x.ndim))) for x in pooled.values())
        return jnp.mean(jnp.square(total - 1))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, ids: Any, number: Any) -> Any:
        found, _, rows = collection.value_and_grad(loss)(state, ids)
        return found, collection.apply(state, rows, number)

    return step


def trained_on_devices(mesh: str, plan: str) -> tuple[list[float], dict[str, np.ndarray]]:
    collection = made(EmbeddingCollection, mesh, plan)
    state, step, losses = collection.init(3), make_step(collection), []
    for number, ids in enumerate(batches()):
        found, state = step(state, collection.put(ids), number)
        losses.append(float(found))
    return losses, arrays_of(collection, state)


def arrays_of(collection: EmbeddingCollection, state: Any) -> dict[str, np.ndarray]:
    return {
        f"{table.name}/{key}": np.array(array)
        for table, key, array in collection.iter_arrays(state)
    }


@pytest.mark.parametrize(
    ("mesh", "plan", "ahead", "is_slow"),
    [
        pytest.param("1x1", "mixed", 0, False, marks=pytest.mark.thorough),
        pytest.param("1x1", "mixed", 3, False, marks=pytest.mark.thorough),
        pytest.param("1x1", "mixed", 3, True, marks=pytest.mark.thorough),
        ("2x2", "mixed", 2, True),
        pytest.param("1x2", "column_wise", 2, False, marks=pytest.mark.thorough),
        pytest.param("2x2", "fully_sharded", 2, True, marks=pytest.mark.thorough),
    ],
)
def test_losses_and_tables_are_the_same(
    mesh: str, plan: str, ahead: int, is_slow: bool, monkeypatch: pytest.MonkeyPatch
):
    losses, expected = trained_on_devices(mesh, plan)
    collection = made(CachedCollection, mesh, plan, cache_rows=CACHE)
    waits = count_waits(monkeypatch)
    if is_slow:  # rows are on their way to the host for as long as they may be
        ready = "dlrm_jax.embedding.row_swaps.OldRows.is_ready"
        monkeypatch.setattr(ready, property(lambda self: False))
    state, step = State(collection.init(3)), make_step(collection)
    feed = RowFeed(collection)
    prepared: list[Any] = []
    for number in range(STEPS):
        while len(prepared) < min(number + ahead + 1, STEPS):
            prepared.append(collection.put(feed.prepare(batches()[len(prepared)])))
        state = feed.begin(state)
        found, embedding = step(state.embedding, prepared[number], number)
        state = State(embedding)
        # Sums of rows of several shards are in another order.
        np.testing.assert_allclose(float(found), losses[number], rtol=0 if mesh == "1x1" else 1e-6)
        if number == STEPS // 2:  # what reads the tables on the way changes nothing
            arrays_of(collection, state.embedding)
    found = arrays_of(collection, state.embedding)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        if mesh == "1x1":
            np.testing.assert_array_equal(found[name], array, err_msg=name)
        else:
            np.testing.assert_allclose(found[name], array, rtol=2e-5, atol=1e-6, err_msg=name)
    read, missed = feed.traffic.read, feed.traffic.missed
    assert all(CACHE[name] < missed[name] < read[name] for name in ("items", "users"))
    assert feed.traffic.to_host == feed.traffic.to_devices > 0
    assert waits or not is_slow


def count_waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the swaps whose rows were awaited since they came back."""
    found: list[int] = []
    land = HostRows.land

    def noted(self: HostRows, last: int | None = None) -> None:
        if last is not None:
            found.append(last)
        land(self, last)

    monkeypatch.setattr(HostRows, "land", noted)
    return found


@pytest.mark.thorough
def test_initial_values_are_those_of_whole_tables():
    tables = [
        dataclasses.replace(TABLES[0], rows=(1 << 18) + 70_000),  # made in two parts
        dataclasses.replace(TABLES[1], rows=(1 << 18) + 70_000),
        *TABLES[2:],
    ]
    whole = made(EmbeddingCollection, "1x1", "mixed", tables)
    cached = made(CachedCollection, "1x1", "mixed", tables, cache_rows=CACHE)
    expected = arrays_of(whole, whole.init(5))
    found = arrays_of(cached, cached.init(5))
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_predictions_leave_the_state_alone():
    collection = made(CachedCollection, "1x1", "mixed", cache_rows=CACHE)
    state = State(collection.init(3))
    before = arrays_of(collection, state.embedding)
    feed = RowFeed(collection, writes_back=False)
    own = feed.copied(state)
    lookup = jax.jit(lambda state, ids: collection.lookup(state, ids)[0])
    for ids in batches()[:5]:
        own_ids = collection.put(feed.prepare(ids))
        own = feed.begin(own)
        pooled = lookup(own.embedding, own_ids)
        rows = before["items/table"][ids[:, :2]] * (ids[:, :2] >= 0)[..., None]
        np.testing.assert_array_equal(pooled["item"], rows.sum(axis=1))
    assert feed.traffic.missed["items"] > 0
    for name, array in arrays_of(collection, state.embedding).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_predictions_between_steps_read_what_the_steps_have_changed():
    cached = made(CachedCollection, "1x1", "mixed", cache_rows=CACHE)
    whole = made(EmbeddingCollection, "1x1", "mixed")
    state, step, feed = State(cached.init(3)), make_step(cached), RowFeed(cached)
    expected, expected_step = whole.init(3), make_step(whole)
    for number, ids in enumerate(batches()[:10]):
        own = cached.put(feed.prepare(ids))
        state = feed.begin(state)
        state = State(step(state.embedding, own, number)[1])
        _, expected = expected_step(expected, whole.put(ids), number)
    predicting = RowFeed(cached, writes_back=False)
    own = predicting.copied(state)
    of_caches, of_whole = (
        jax.jit(lambda s, ids, x=x: x.lookup(s, ids)[0]) for x in (cached, whole)
    )
    for ids in batches()[:20]:
        own_ids = cached.put(predicting.prepare(ids))
        own = predicting.begin(own)
        found, wanted = of_caches(own.embedding, own_ids), of_whole(expected, whole.put(ids))
        for name, pooled in wanted.items():
            np.testing.assert_array_equal(found[name], pooled, err_msg=name)


def test_an_array_of_another_shape_is_refused():
    collection = made(CachedCollection, "1x1", "mixed", cache_rows=CACHE)
    wrong = {"users": {"table": np.zeros((24, 8), np.float32)}}
    with pytest.raises(UserError, match=r"users: table must have shape \(300, 8\), got \(24, 8\)"):
        collection.from_arrays(lambda table: wrong.get(table.name, {}), 0)
    wrong = {"users": {"rows": np.zeros((24, 8), np.float32)}}
    with pytest.raises(UserError, match=r"table users has table, .*but 'rows' was given"):
        collection.from_arrays(lambda table: wrong.get(table.name, {}), 0)


def test_rows_of_host_memory_are_not_read_by_number():
    collection = made(CachedCollection, "1x1", "mixed", cache_rows=CACHE)
    state = collection.init(0)
    for call in (
        lambda: collection.read_rows(state, {"users": [1]}),
        lambda: collection.read_row_state(state, {"users": [1]}),
        lambda: collection.write_rows(state, {"users": [1]}, {}),
    ):
        with pytest.raises(UserError, match="table users lies in host memory"):
            call()
    assert collection.read_rows(state, {"days": [1]})["days"].shape == (1, 8)


@pytest.mark.parametrize(
    ("rows", "changed", "message"),
    [
        ({"none": 3}, {}, "there is no table 'none'"),
        (
            {"users": 300},
            {},
            "at least 1 row of table users on the devices, and fewer than its 300",
        ),
        ({"items": 96}, {}, "feature item reads tables in host memory and others"),
        ({**CACHE, "items.weight": 90}, {}, "items with 96 of 400, items.weight with 90 of 400"),
        ({"users": 30}, {"dtype": "bfloat16"}, "table users is rounded at random"),
    ],
)
def test_what_cannot_be_cached_is_refused(rows: Any, changed: Any, message: str):
    tables = [dataclasses.replace(x, **changed) if x.name == "users" else x for x in TABLES]
    with pytest.raises(UserError, match=message):
        CachedCollection(tables, FEATURES, LOOKUPS, "1x1", SGD(1.0), cache_rows=rows)
