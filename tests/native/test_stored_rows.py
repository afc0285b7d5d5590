"""Native encoding and lookups of stored rows: the bits of the formulations in NumPy."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from stored_lookups import ROWS, draw_ids, make_lookups

from dlrm_jax.artifact import row_quantization
from dlrm_jax.artifact.row_pooling import RowPooling, StoredLookup
from dlrm_jax.artifact.stored_tables import map_table
from dlrm_jax.errors import UserError
from dlrm_jax.native import quantized_rows


def in_numpy(lookups) -> RowPooling:
    pool = RowPooling(lookups)
    pool._native = None
    return pool


@pytest.mark.parametrize("dim", [1, 2, 7, 16, 33])
def test_encoding_gives_the_same_bytes(dim):
    rng = np.random.default_rng(dim)
    numbers = rng.standard_t(3, (300, dim))
    numbers[:100] *= 10.0 ** rng.uniform(-9, 3, (100, 1))
    numbers[100:200] += 1000
    numbers[200:210] = numbers[200:210, :1]
    numbers[210:220] *= rng.integers(0, 2, (10, dim)) * -1.0  # zeros of both signs
    if dim > 2:  # the search looks beyond what float16 holds
        numbers[220:223] = 80_000
        numbers[220:223, :2] = 60_000, 900_000
    rows = numbers.astype(np.float32)
    for bits in (8, 4):
        found = quantized_rows.quantize(rows, bits)
        assert np.array_equal(found, row_quantization.quantize(rows, bits))


@pytest.mark.parametrize("samples", [1, 3, 100, 700])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_pooling_gives_the_same_bits(samples, dtype):
    lookups = make_lookups()
    ids = draw_ids(lookups, samples, dtype)
    weights = np.random.default_rng(1).normal(size=ids.shape).astype(np.float32)
    native = RowPooling(lookups)
    assert native._native is not None
    for of_ids in (None, weights):
        found = native(ids, of_ids)
        assert np.array_equal(found, in_numpy(lookups)(ids, of_ids))


def test_copies_read_their_own_tables():
    lookups = make_lookups()
    ids = draw_ids(lookups, 20)
    native = RowPooling(lookups, threads=1)
    wanted = native(ids)
    copied, loaded = copy.deepcopy(native), pickle.loads(pickle.dumps(native))
    del native
    for pool in (copied, loaded):
        assert np.array_equal(pool(ids), wanted)


def test_threads_change_nothing():
    lookups = make_lookups()
    ids = draw_ids(lookups, 2000)
    wanted = RowPooling(lookups, threads=1)(ids)
    pool = RowPooling(lookups, threads=3)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(pool, [ids] * 8):
            assert np.array_equal(found, wanted)
    for most in (2**63, 2**64):  # no number of 64 bits
        assert np.array_equal(RowPooling(lookups, threads=most)(ids), wanted)


def test_large_results_are_the_same_bits():
    lookups = [x for x in make_lookups() if x.table.dim == 16][:2]
    pool, ids = RowPooling(lookups), draw_ids(make_lookups(), 40_000)
    assert 4 * len(ids) * pool.width > 2**22  # written past the caches
    assert np.array_equal(pool(ids), in_numpy(lookups)(ids))


def test_the_first_id_beyond_its_table_is_named():
    pool = RowPooling(make_lookups(), threads=2)
    ids = draw_ids(pool.lookups, 2000)
    ids[1500, 0] = ids[1999, 4] = ids[800, 4] = 2**31 - 1
    with pytest.raises(UserError, match="row 800, column 4 of lookup lookup 2: got 2147483647"):
        pool(ids)
    ids[800, 4], ids[1500, 0] = -(2**31), ROWS
    with pytest.raises(UserError, match=f"row 1500, column 0 of lookup lookup 0: got {ROWS}"):
        pool(ids)


@pytest.mark.thorough
def test_rows_beyond_two_gib_are_read(tmp_path):
    rows, dim = 2**31 // 20 + 1000, 16
    table_rows = row_quantization.quantize(
        np.random.default_rng(0).normal(size=(2, dim)).astype(np.float32), 8
    )
    path = tmp_path / "large.rows"
    with path.open("wb") as file:  # only its first and last row take space
        file.write(table_rows[0].tobytes())
        file.truncate(rows * 20)
        file.seek((rows - 1) * 20)
        file.write(table_rows[1].tobytes())
    table = map_table(path, "large", rows, "int8", dim)
    lookups = [StoredLookup("large", table, (0, 3), "none")]
    ids = np.array([[0, rows - 1, rows - 2]])
    found = RowPooling(lookups)(ids).reshape(3, dim)
    assert np.array_equal(found[:2], row_quantization.dequantize(table_rows, 8, dim))
    assert not found[2].any()
    assert np.array_equal(found, in_numpy(lookups)(ids).reshape(3, dim))
