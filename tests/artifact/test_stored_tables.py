from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dlrm_jax.artifact.row_formats import encode
from dlrm_jax.artifact.stored_tables import StoredTable, map_table
from dlrm_jax.errors import UserError

STORED = encode(np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32), "int8")


def test_a_file_is_mapped(tmp_path):
    path = tmp_path / "shop.rows"
    path.write_bytes(STORED.tobytes())
    table = map_table(path, "shop", 5, "int8", 3)
    assert np.array_equal(table.rows, STORED)
    assert not table.rows.flags.writeable
    part = table.rows[1:]
    changed = STORED.copy()
    changed[4] = 7
    path.write_bytes(changed.tobytes())
    del table
    assert np.array_equal(part, changed[1:]), "views keep the map"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux tells")
def test_maps_have_no_open_files_and_end_with_their_arrays(tmp_path):
    path = tmp_path / "shop.rows"
    path.write_bytes(STORED.tobytes())
    open_files = len([*Path("/proc/self/fd").iterdir()])
    tables = [map_table(path, "shop", 5, "int8", 3) for _ in range(50)]
    assert len([*Path("/proc/self/fd").iterdir()]) == open_files
    assert Path("/proc/self/maps").read_text().count(str(path)) == 50
    del tables
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_files_of_another_size_and_missing_ones_are_errors(tmp_path):
    path = tmp_path / "shop.rows"
    with pytest.raises(UserError, match="table shop: cannot read"):
        map_table(path, "shop", 5, "int8", 3)
    path.write_bytes(STORED.tobytes()[:-1])
    with pytest.raises(
        UserError, match=r"expected 35 bytes in .*, 5 rows of 3 numbers as int8, got 34"
    ):
        map_table(path, "shop", 5, "int8", 3)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"expected 0 bytes in .*, 0 rows"):
        map_table(path, "shop", 0, "int8", 3)


def test_rows_must_fit_the_format():
    with pytest.raises(UserError, match="expected uint8 rows of 6 bytes for 4 numbers as int4"):
        StoredTable("shop", STORED, "int4", 4)
    with pytest.raises(UserError, match="side by side in memory"):
        StoredTable("shop", STORED[::2], "int8", 3)
