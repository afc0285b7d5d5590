import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlrm_jax.embedding import SGD, Feature, Lookup, RowOptax, Table
from dlrm_jax.embedding.table import check_descriptions
from dlrm_jax.errors import UserError


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Feature("age", 0), "feature age: max_ids must be at least 1, got 0"),
        (lambda: Table("ads", 0, 4), "table ads: rows and dim must be at least 1, got 0 x 4"),
        (lambda: Table("ads", 4, -1), "table ads: rows and dim must be at least 1, got 4 x -1"),
        (lambda: Table("ads", 2**31, 1), "table ads: .* rows fit int32, got 2147483648"),
        *(
            (
                functools.partial(Table, "ads", 4, 4, dtype=dtype),
                f"ads: .* floating .*, got {dtype}",
            )
            for dtype in ("int8", "foo", "float8_e4m3fn")
        ),
    ],
)
def test_description_errors_name_the_offender(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_pooling_that_does_not_exist_names_the_lookup():
    # Without the import hook, which users don't have and which would stop it first.
    plain = inspect.unwrap(Lookup.__init__)
    with pytest.raises(UserError, match="lookup l: pooling must be sum, mean or none, got max"):
        plain(object.__new__(Lookup), "l", "f", "t", "max")


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Feature, ("age", 2.5), "feature age: max_ids: expected an integer, got 2.5"),
        (Table, ("ads", 100.0, 4), "table ads: rows: expected an integer, got 100.0"),
        (Table, ("ads", 100, "4"), "table ads: dim: expected an integer, got '4'"),
    ],
)
def test_sizes_are_integers(kind, arguments, message):
    with pytest.raises(UserError, match=message):
        inspect.unwrap(kind.__init__)(object.__new__(kind), *arguments)


def test_ids_are_dynamic_by_a_policy():
    plain = inspect.unwrap(Table.__init__)
    with pytest.raises(UserError, match=r"table ads: ids: expected DynamicIds, .* got 'lru'"):
        plain(object.__new__(Table), "ads", 100, 4, ids="lru")


F, G = Feature("f"), Feature("g", 2)
A, B = Table("a", 3, 2), Table("b", 4, 2)
READ_A, READ_B = Lookup("la", "f", "a"), Lookup("lb", "g", "b")


@pytest.mark.parametrize(
    ("tables", "features", "lookups", "message"),
    [
        ([A, A], [F], [READ_A], "table names must be unique, a came twice"),
        ([A], [F, G, F, G], [READ_A], "feature names must be unique, f, g came twice"),
        ([A], [F], [READ_A, READ_A], "lookup names must be unique, la came twice"),
        ([A, B], [F], [READ_A, READ_B], "lookup lb: no feature named 'g'; there are f"),
        ([A], [F, G], [READ_A, READ_B], "lookup lb: no table named 'b'; there are a"),
        ([A, B], [F], [READ_A], r"no lookup reads the table\(s\) b"),
    ],
)
def test_contradictions_name_the_offender(tables, features, lookups, message):
    with pytest.raises(UserError, match=message):
        check_descriptions(tables, features, lookups, SGD(0.1))


def test_descriptions_may_share_tables_and_features_and_leave_a_feature_unread():
    lookups = [READ_A, Lookup("again", "g", "a"), Lookup("other", "f", "b")]
    check_descriptions([A, B], [F, G, Feature("unread")], lookups, SGD(0.1))


def test_a_table_has_its_own_optimizer_or_the_default_or_none():
    assert A.row_optimizer(SGD(0.1)) == SGD(0.1)
    assert A.row_optimizer(None) is None
    own = Table("a", 3, 2, optimizer=optax.sgd(0.1))
    assert isinstance(own.row_optimizer(SGD(0.1)), RowOptax)
    assert Table("a", 3, 2, trainable=False).row_optimizer(SGD(0.1)) is None
    with pytest.raises(UserError, match=r"no optimizer for the table\(s\) a"):
        check_descriptions([A], [F], [READ_A], None)


def test_bytes_are_those_of_the_dtype():
    assert Table("a", 10, 3).nbytes == 120
    assert Table("a", 10, 3, dtype="bfloat16").nbytes == 60


def test_initial_rows_are_the_references_or_ones_own():
    table = Table("a", 100, 16)
    values = np.asarray(table.initial_rows(jax.random.key(0), 1000, table.initial_bound))
    assert values.shape == (1000, 16)
    assert np.abs(values).max() < 0.1  # sqrt(1 / 100)
    assert np.std(values) == pytest.approx(0.1 / np.sqrt(3), rel=0.02)
    own = Table("a", 100, 2, init=lambda key, shape, dtype: jnp.full(shape, 7, dtype))
    np.testing.assert_array_equal(own.initial_rows(jax.random.key(0), 3, 0.1), np.full((3, 2), 7.0))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_initial_rows_of_short_dtypes_are_those_of_float32_rounded(dtype):
    key = jax.random.key(0)
    wanted = Table("a", 100, 16).initial_rows(key, 1000, 0.1)
    found = Table("a", 100, 16, dtype=dtype).initial_rows(key, 1000, 0.1)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, wanted.astype(dtype))


def test_initial_rows_of_another_shape_are_refused():
    bad = Table("a", 100, 2, init=lambda key, shape, dtype: jnp.zeros((5, 2)))
    with pytest.raises(UserError, match=r"table a: init must give .* \(3, 2\), got \(5, 2\)"):
        bad.initial_rows(jax.random.key(0), 3, 0.1)
