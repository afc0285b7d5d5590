from __future__ import annotations

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
    assert isinstance(table.rows, np.memmap)
    assert np.array_equal(table.rows, STORED)


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
    with pytest.raises(UserError, match=r"cannot map|one or more rows"):
        map_table(path, "shop", 0, "int8", 3)


def test_rows_must_fit_the_format():
    with pytest.raises(UserError, match="expected uint8 rows of 6 bytes for 4 numbers as int4"):
        StoredTable("shop", STORED, "int4", 4)
    with pytest.raises(UserError, match="side by side in memory"):
        StoredTable("shop", STORED[::2], "int8", 3)
