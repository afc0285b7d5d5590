import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_jax.data import multi_hot
from dlrm_jax.data.multi_hot import MLPERF_SIZES, expand, synthetic_tables


def drawn_at_once(rows, sizes, seed=0):
    """As MLPerf's tables are defined: NumPy's global generator, a table at a time."""
    state = np.random.get_state()
    try:
        np.random.seed(seed)
        return [
            np.column_stack([np.arange(n), np.random.randint(0, n, size=(n, h - 1))])
            for n, h in zip(rows, sizes, strict=True)
        ]
    finally:
        np.random.set_state(state)


# Powers of two and their neighbors, where numbers are drawn without or with rejections.
ROWS = (1, 2, 3, 4, 5, 63, 64, 65, 1543, 40_000)


@given(st.lists(st.tuples(st.sampled_from(ROWS), st.integers(1, 7)), min_size=1, max_size=5))
def test_tables_are_those_of_one_draw(tmp_path_factory, tables):
    rows, sizes = zip(*tables, strict=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multi_hot, "_CHUNK_DRAWS", 1000)
        paths = synthetic_tables(rows, sizes, tmp_path_factory.mktemp("tables"))
    for path, expected in zip(paths, drawn_at_once(rows, sizes), strict=True):
        table = np.load(path)
        assert table.dtype == np.int32
        np.testing.assert_array_equal(table, expected)


def test_numbers_of_the_published_tables(tmp_path):
    """Of `np.random.seed(0)`, which NumPy keeps as they are for all time."""
    rows, sizes = (10, 1, 4), (3, 2, 3)
    tables = [np.load(path).tolist() for path in synthetic_tables(rows, sizes, tmp_path)]
    assert tables[0][:4] == [[0, 5, 0], [1, 3, 3], [2, 7, 9], [3, 3, 5]]
    assert tables[1] == [[0, 0]]
    assert len(MLPERF_SIZES) == 26
    assert sum(MLPERF_SIZES) == 214


def test_drawing_again_gives_the_same_and_another_seed_another(tmp_path):
    first = [np.load(path) for path in synthetic_tables((50, 60), (4, 2), tmp_path)]
    again = [np.load(path) for path in synthetic_tables((50, 60), (4, 2), tmp_path)]
    other = [np.load(path) for path in synthetic_tables((50, 60), (4, 2), tmp_path, seed=1)]
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()


def test_ids_become_rows_of_the_table(tmp_path):
    (path,) = synthetic_tables((7,), (3,), tmp_path)
    table = np.load(path, mmap_mode="r")
    ids = np.array([3, -1, 6, 7, 2**31 - 1, 0], np.int32)
    expected = [table[3], [-1] * 3, table[6], table[0], table[(2**31 - 1) % 7], table[0]]
    bags = expand(ids, table)
    assert bags.dtype == np.int32
    assert type(bags) is np.ndarray
    np.testing.assert_array_equal(bags, expected)
    assert expand(ids[:0], table).shape == (0, 3)
