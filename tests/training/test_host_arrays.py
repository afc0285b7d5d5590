from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dlrm_jax.errors import DamagedCheckpointError
from dlrm_jax.training.host_arrays import load_host_arrays, save_host_arrays

ARRAYS = {
    "keys": np.array([1, 2**64 - 1], np.uint64),
    "none": np.zeros((0, 3), np.float32),
    "one": np.array([1.5]),
}


def test_arrays_come_back_bit_by_bit(tmp_path: Path):
    noted = save_host_arrays(tmp_path, ARRAYS)
    found = load_host_arrays(tmp_path, noted)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    np.testing.assert_array_equal(np.load(tmp_path / "host" / "keys.npy"), ARRAYS["keys"])


def test_nothing_is_written_without_arrays(tmp_path: Path):
    assert save_host_arrays(tmp_path, {}) == {}
    assert list(tmp_path.iterdir()) == []
    assert load_host_arrays(tmp_path, {}) == {}


@pytest.mark.parametrize("damage", ["missing", "bit", "short", "other"])
def test_damage_is_named(tmp_path: Path, damage: str):
    noted = save_host_arrays(tmp_path, ARRAYS)
    path = tmp_path / "host" / "keys.npy"
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "bit":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "short":
        path.write_bytes(content[:-4])
    else:
        np.save(path, ARRAYS["keys"].astype(np.int64))
    with pytest.raises(DamagedCheckpointError, match=r"host/keys\.npy"):
        load_host_arrays(tmp_path, noted)
