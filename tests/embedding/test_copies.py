"""Copies of tables that differ are found; what is equal or has no copies isn't."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_collection import built, collection, random_arrays

from dlrm_jax.embedding import copies
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh


def changed(array: jax.Array, device: int, change) -> jax.Array:
    """The array, changed on one device alone."""
    parts = [np.array(shard.data) for shard in array.addressable_shards]
    change(parts[device])
    placed = [
        jax.device_put(part, shard.device)
        for part, shard in zip(parts, array.addressable_shards, strict=True)
    ]
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, placed)


def flip_last_bit(part: np.ndarray) -> None:
    part.reshape(-1)[-1:].view(np.uint8)[0] ^= 1


def swap_rows(part: np.ndarray) -> None:
    part[[0, 1]] = part[[1, 0]]


def with_table(state, name, array):
    return dataclasses.replace(state, tables={**state.tables, name: array})


@pytest.mark.parametrize("mesh", [pytest.param("2x2", marks=pytest.mark.thorough), "2x4"])
@pytest.mark.parametrize("plan", ["mixed", "column_wise"])
def test_one_changed_bit_of_any_array_is_found(mesh, plan):
    c = collection(mesh, plan)
    state = built(c, random_arrays())
    c.check_copies(state)
    last = c.mesh.size - 1
    for slab in c.layout.slabs:
        names = f"copies of table\\(s\\) {', '.join(slab.tables)} differ"
        table = state.tables[slab.name]
        rows = np.asarray(table.addressable_shards[last].data[:2])
        differ = len(rows) == 2 and np.any(rows[0] != rows[1])  # not on a shard without rows
        for change in (flip_last_bit, swap_rows) if differ else (flip_last_bit,):
            with pytest.raises(UserError, match=names):
                c.check_copies(with_table(state, slab.name, changed(table, last, change)))
        for slot, array in state.slots.get(slab.name, {}).items():
            own = {**state.slots[slab.name], slot: changed(array, 0, flip_last_bit)}
            wrong = dataclasses.replace(state, slots={**state.slots, slab.name: own})
            with pytest.raises(UserError, match=names):
                c.check_copies(wrong)


def test_copies_of_nan_are_equal_and_both_wrong_tables_are_named():
    c = collection("2x2", "replicated")
    arrays = random_arrays()
    arrays["a"]["table"][3] = np.nan
    state = built(c, arrays)
    c.check_copies(state)
    for slab in c.layout.slabs[:2]:
        state = with_table(state, slab.name, changed(state.tables[slab.name], 1, flip_last_bit))
    one, other = (", ".join(slab.tables) for slab in c.layout.slabs[:2])
    with pytest.raises(UserError, match=rf"table\(s\) {one} and of table\(s\) {other} differ"):
        c.check_copies(state)


@pytest.mark.parametrize(("mesh", "plan"), [("1x1", "mixed"), ("1x2", "row_wise")])
def test_nothing_runs_without_copies(mesh, plan, monkeypatch):
    c = collection(mesh, plan)
    state = built(c, random_arrays())
    monkeypatch.delattr(copies, "_exchange")
    c.check_copies(state)


def test_it_needs_no_memory_as_large_as_a_table():
    sharding = jax.sharding.NamedSharding(make_mesh("2x1"), jax.sharding.PartitionSpec())
    for shape, dtype in (((1_000_003, 8), "f4"), ((2_000_003, 8), "u2"), ((5_000_011,), "f4")):
        table = jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        check = copies._exchange(sharding.mesh, (sharding.spec,))
        memory = check.lower(table).compile().memory_analysis()
        assert memory is not None
        assert memory.temp_size_in_bytes < table.size * table.dtype.itemsize / 10


@pytest.mark.parametrize("rows", [[3], [3, 700], slice(None)])
def test_an_even_number_of_changed_signs_is_found(rows):
    mesh = make_mesh("2x1")
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x = np.random.default_rng(0).normal(size=(1000, 16)).astype(np.float32)

    def negate(part: np.ndarray) -> None:
        part[rows] = -part[rows]

    array = jax.device_put(x, sharding)
    assert copies._unequal(mesh, {"x": [array]}) == []
    assert copies._unequal(mesh, {"x": [changed(array, 1, negate)]}) == ["x"]


@pytest.mark.parametrize("dtype", [jnp.int4, jnp.uint4, jnp.float8_e4m3fn, jnp.float4_e2m1fn])
def test_numbers_of_few_bits_are_compared(dtype):
    mesh = make_mesh("2x1")
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x = np.arange(6).astype(dtype)
    first, last = mesh.devices.flat
    parts = [jax.device_put(x, first), jax.device_put(x[::-1], last)]
    other = jax.make_array_from_single_device_arrays(x.shape, sharding, parts)
    assert copies._unequal(mesh, {"x": [jax.device_put(x, sharding)]}) == []
    assert copies._unequal(mesh, {"x": [other]}) == ["x"]


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_are_compared_by_their_bits(impl):
    mesh = make_mesh("2x1")
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    data = jax.device_put(jax.random.key_data(jax.random.key(7, impl=impl)), sharding)
    for array, found in ((data, []), (changed(data, 1, flip_last_bit), ["key"])):
        key = jax.random.wrap_key_data(array, impl=impl)
        assert copies._unequal(mesh, {"key": [key]}) == found


def test_parts_of_complex_numbers_are_compared():
    mesh = make_mesh("2x1")
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x = jax.device_put(np.array([1 + 2j, -0.0, 3j]).astype(np.complex64), sharding)
    assert copies._unequal(mesh, {"x": [x]}) == []
    assert copies._unequal(mesh, {"x": [changed(x, 1, flip_last_bit)]}) == ["x"]


def test_an_array_on_one_device_has_no_copies():
    copies.check_copies(make_mesh("2x1"), {"x": [jnp.arange(3)]})
