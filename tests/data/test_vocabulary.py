"""Which value has which id."""

from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_jax.data.preprocessing import vocabulary
from dlrm_jax.data.preprocessing.vocabulary import FIRST_VALUE, MISSING, UNSEEN
from dlrm_jax.errors import UserError

VALUES = st.lists(st.none() | st.integers(0, 20), max_size=60)


def learned(values, **options):
    frame = pl.DataFrame({"value": pl.Series(values, dtype=pl.Int64)})
    return vocabulary.learn(frame.lazy(), **options)


def ids(table):
    return dict(table.select("value", "id").rows())


def test_rare_values_share_rows_above_the_limit():
    table = learned([v for v in range(100) for _ in range(100 - v)], max_rows=40)
    assert vocabulary.rows(table.lazy()) == 40
    assert table["id"].to_list()[:33] == list(range(2, 35))
    assert set(table["id"].to_list()[33:]) == set(range(35, 40))


@given(VALUES, VALUES, st.integers(1, 3))
def test_growing_keeps_ids_and_adds_new_values_by_frequency(old, new, min_count):
    known = learned(old)
    grown = learned(new, min_count=min_count, known=known)
    before, after = ids(known), ids(grown)
    assert {value: after[value] for value in before} == before
    counts = Counter(value for value in new if value is not None)
    added = [v for v in counts if v not in before and counts[v] >= min_count]
    added.sort(key=lambda value: (-counts[value], value))
    first = FIRST_VALUE + len(before)
    assert {v: after[v] for v in added} == {v: first + i for i, v in enumerate(added)}
    assert after.keys() == before.keys() | set(added)
    total = Counter(value for value in old if value is not None)
    total.update({v: n for v, n in counts.items() if v in after})
    assert dict(grown.select("value", "count").rows()) == total
    assert vocabulary.rows(grown.lazy()) == max(after.values(), default=1) + 1


def test_growing_beyond_the_limit_shares_rows():
    known = learned(range(30), max_rows=40)
    grown = learned(range(30, 60), max_rows=40, known=known)
    assert ids(known).items() <= ids(grown).items()
    assert vocabulary.rows(grown.lazy()) == 40
    assert {ids(grown)[value] for value in range(36, 60)} <= set(range(35, 40))


def test_growing_by_another_type():
    frame = pl.DataFrame({"value": ["a", "b"]})
    with pytest.raises(UserError, match="values of its own type, Int64, got String"):
        vocabulary.learn(frame.lazy(), known=learned([1, 2]))


@given(VALUES, VALUES)
def test_encoding(training, values):
    table = learned(training)
    known = ids(table)
    series = pl.Series(values, dtype=pl.Int64)
    expected = [MISSING if value is None else known.get(value, UNSEEN) for value in values]
    assert vocabulary.encode(series, table, 1)[:, 0].tolist() == expected


@given(VALUES, st.integers(1, 3))
def test_counting_in_parts_changes_nothing(values, min_count):
    whole = learned(values, min_count=min_count)
    in_order = pl.LazyFrame({"value": [value or 0 for value in values]}, {"value": pl.Int64})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "_DISTINCT_PER_PART", 3)
        assert learned(values, min_count=min_count).equals(whole)
        by_parts = vocabulary.learn_in_order(in_order, 2, min_count)
    assert by_parts.equals(vocabulary.learn_in_order(in_order, 2, min_count))


@pytest.mark.parametrize("large", [0, 1000])
@pytest.mark.parametrize(
    "values", [pl.Series([3, None, 1, 9, 3]), pl.Series([[3, 1], [], None, [9, None, 3]])]
)
def test_reading_what_is_needed(tmp_path, monkeypatch, values, large):
    monkeypatch.setattr(vocabulary, "_LARGE", large)
    table = learned([1, 1, 2, 3])
    table.write_parquet(tmp_path / "0.parquet")
    found = vocabulary.read_for(values, tmp_path / "0.parquet")
    assert len(found) == (3 if large else 2)
    expected = vocabulary.encode(values, table, 3).tolist()
    assert vocabulary.encode(values, found, 3).tolist() == expected


def test_a_value_without_an_id():
    table = vocabulary.learn_in_order(pl.LazyFrame({"value": [3, 4]}))
    with pytest.raises(UserError, match="the value 5 isn't in the vocabulary"):
        vocabulary.encode(pl.Series([3, 5]), table, 1, unseen=None)
