"""Which value has which id."""

from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlrm_jax.data.preprocessing import vocabulary
from dlrm_jax.data.special_ids import FIRST_VALUE, MISSING, UNSEEN
from dlrm_jax.errors import UserError

VALUES = st.lists(st.none() | st.integers(0, 20), max_size=60)


def learned(values, **options):
    frame = pl.DataFrame({"value": pl.Series(values, dtype=pl.Int64)})
    return vocabulary.learn([frame.lazy()], **options)


def ids(table):
    return dict(table.select("value", "id").rows())


def test_rare_values_share_rows_above_the_limit():
    table = learned([v for v in range(100) for _ in range(100 - v)], max_rows=40)
    assert vocabulary.rows_needed(table.lazy()) == 40
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
    assert vocabulary.rows_needed(grown.lazy()) == max(after.values(), default=1) + 1


@pytest.mark.parametrize(("limit", "rows", "new_ids"), [(0, 70, range(40, 70)), (40, 40, (35, 39)),
                                                        (100, 70, range(40, 70))])  # fmt: skip
def test_growing_a_table_that_shared_rows(limit, rows, new_ids):
    known = learned(range(60), max_rows=40)  # has as many rows as it may
    grown = learned(range(60, 90), max_rows=limit, known=known)
    assert ids(known).items() <= ids(grown).items()
    assert vocabulary.rows_needed(grown.lazy()) == rows
    added = [ids(grown)[value] for value in range(60, 90)]
    assert (min(added), max(added)) == (min(new_ids), max(new_ids))


def test_a_table_does_not_shrink():
    known = learned(range(60), max_rows=40)
    with pytest.raises(UserError, match="has 40 rows already, more than max_rows = 30"):
        learned(range(90), max_rows=30, known=known)


def test_growing_by_another_type():
    frame = pl.DataFrame({"value": ["a", "b"]})
    with pytest.raises(UserError, match="values of its own type, Int64, got String with '"):
        vocabulary.learn([frame.lazy()], known=learned([1, 2]))


@pytest.mark.parametrize(
    ("new", "added"),
    [
        (pl.Series([3, 5, 5], dtype=pl.Int32), [5]),
        (pl.Series([3.0, None, float("nan"), 5.0]), [5]),
        (pl.Series(["3", "5"]), [5]),
        (pl.Series([None, None]), []),
    ],
)
def test_growing_by_the_same_values_in_another_type(new, added):
    known = learned([1, 3])
    grown = vocabulary.learn([new.to_frame("value").lazy()], known=known)
    assert grown.schema == known.schema
    assert grown["value"].to_list() == [*known["value"], *added]
    bags = pl.Series("value", [new.to_list(), None], dtype=pl.List(new.dtype))
    assert vocabulary.learn([bags.to_frame().lazy()], known=known).equals(grown)


def test_counts_that_grow_beyond_32_bits():
    known = learned([7]).with_columns(pl.lit(2**32 - 10, pl.UInt32).alias("count"))
    grown = vocabulary.learn([pl.LazyFrame({"value": [7] * 50 + [8]})], known=known)
    assert grown.select("value", "count").rows() == [(7, 2**32 + 40), (8, 1)]


def test_growing_counts_all_texts_of_a_number():
    known = learned([3, 4])
    texts = pl.LazyFrame({"value": ["3", "3.0", "7", "7.0", "7.0", "9", "9", "9.0"]})
    grown = vocabulary.learn([texts], known=known, min_count=3)
    assert grown["value"].to_list() == [*known["value"], 7, 9]
    counts = dict(zip(grown["value"], grown["count"], strict=True))
    before = dict(zip(known["value"], known["count"], strict=True))
    assert counts == {3: before[3] + 2, 4: before[4], 7: 3, 9: 3}
    assert grown["id"].is_unique().all()


def test_growing_from_a_column_without_values():
    known = vocabulary.learn([pl.LazyFrame({"value": [None, None]})])
    grown = vocabulary.learn([pl.LazyFrame({"value": ["b", "a", "a"]})], known=known)
    assert ids(grown) == {"a": FIRST_VALUE, "b": FIRST_VALUE + 1}


@pytest.mark.parametrize("values", [[1.0, 2.5], ["1", "x"], [1, 2**63]])
def test_growing_by_values_that_the_type_does_not_have(values):
    frame = pl.DataFrame({"value": pl.Series(values, dtype=None)})
    with pytest.raises(UserError, match=rf"values of its own type, Int64, got .* {values[1]!r}"):
        vocabulary.learn([frame.lazy()], known=learned([1]))


@given(VALUES, VALUES)
def test_encoding(training, values):
    table = learned(training)
    known = ids(table)
    series = pl.Series(values, dtype=pl.Int64)
    expected = [MISSING if value is None else known.get(value, UNSEEN) for value in values]
    assert vocabulary.encode(series, table, 1)[:, 0].tolist() == expected


@given(VALUES, st.integers(1, 3))
def test_counting_in_passes_changes_nothing(values, min_count):
    whole = learned(values, min_count=min_count)
    all_values = [value or 0 for value in values]
    halves = (all_values[:7], all_values[7:])
    frames = [pl.LazyFrame({"value": half}, {"value": pl.Int64}) for half in halves]
    in_order = (frames, list(map(len, halves)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "_DISTINCT_PER_PASS", 3)
        assert learned(values, min_count=min_count).equals(whole)
        in_passes = vocabulary.learn_in_order(*in_order, 2, min_count)
    assert in_passes.equals(vocabulary.learn_in_order(*in_order, 2, min_count))


@pytest.mark.parametrize("large", [0, 1000])
@pytest.mark.parametrize(
    "values", [pl.Series([3, None, 1, 9, 3]), pl.Series([[3, 1], [], None, [9, None, 3]])]
)
def test_reading_what_is_needed(tmp_path, monkeypatch, values, large):
    monkeypatch.setattr(vocabulary, "_LARGE", large)
    table = learned([1, 1, 2, 3])
    table.write_parquet(tmp_path / "0.parquet")
    found = vocabulary.read_entries(values, tmp_path / "0.parquet")
    assert len(found) == (3 if large else 2)
    expected = vocabulary.encode(values, table, 3).tolist()
    assert vocabulary.encode(values, found, 3).tolist() == expected


def test_a_value_without_an_id():
    table = vocabulary.learn_in_order([pl.LazyFrame({"value": [3, 4]})], [2])
    with pytest.raises(UserError, match="the value 5 isn't in the vocabulary"):
        vocabulary.encode(pl.Series([3, 5]), table, 1, unseen=None)


def test_a_value_that_is_twice_in_a_damaged_vocabulary(tmp_path):
    """It would shift the ids of all rows behind it."""
    table = learned([1, 1, 2])
    pl.concat([table, table.tail(1)]).write_parquet(tmp_path / "0.parquet")
    with pytest.raises(UserError, match=r"0\.parquet is damaged: it has the value 2 twice"):
        vocabulary.read_whole(tmp_path / "0.parquet")
    values = pl.Series([1, 2, 1, 2])
    entries = vocabulary.read_entries(values, tmp_path / "0.parquet")
    with pytest.raises(UserError, match="its vocabulary is damaged: it has the value 2 twice"):
        vocabulary.encode(values, entries, 1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pl.Series([1.0, None, 3.0, 2.5, 1e300, float("nan")]), [2, MISSING, 4, 0, 0, MISSING]),
        (pl.Series(["1", None, "3", "x", "007", "1.0", "9" * 30]), [2, MISSING, 4, 0, 0, 2, 0]),
        (pl.Series(["3.", "3.5", "03.0", " 3", "1.00"]), [0, 0, 0, 0, 2]),
        (pl.Series([2**63, 1], dtype=pl.UInt64), [0, 2]),
        (pl.Series([None, None]), [MISSING, MISSING]),
    ],
)
def test_values_in_another_type(values, expected):
    """Those that aren't integers are unseen; the others are as in training."""
    table = learned([1, 1, 1, 2, 2, 3])
    assert vocabulary.encode(values, table, 1)[:, 0].tolist() == expected
    bags = pl.Series([values.to_list(), [], None], dtype=pl.List(values.dtype))
    absent = [-1] * len(values)
    assert vocabulary.encode(bags, table, len(values)).tolist() == [expected, absent, absent]


def test_whole_numbers_of_a_column_that_training_had_as_floats():
    """As pandas makes them where a value is missing; 2^53 + 1 is no float."""
    table = vocabulary.learn([pl.LazyFrame({"value": [1.0, 1.0, 2.5, 2.0**53]})])
    values = pl.Series([1, None, 2, 2**53, 2**53 + 1])
    ids = dict(table.select("value", "id").iter_rows())
    expected = [ids[1.0], MISSING, UNSEEN, ids[2.0**53], UNSEEN]
    assert vocabulary.encode(values, table, 1)[:, 0].tolist() == expected


def test_nan_is_missing_also_in_a_list():
    nan = float("nan")
    bags = pl.Series("value", [[0.5, nan], [nan, None], [0.5]])
    table = vocabulary.learn([bags.to_frame().lazy()])
    assert table["value"].to_list() == [0.5]
    assert vocabulary.encode(bags, table, 2).tolist() == [[2, MISSING], [MISSING] * 2, [2, -1]]
    # An earlier version gave it an id, which the model of that data was trained with.
    earlier = pl.DataFrame({"value": [0.5, nan], "count": [2, 2], "id": [2, 3]})
    earlier = earlier.cast({"id": pl.Int32})
    assert vocabulary.encode(bags, earlier, 2).tolist() == [[2, 3], [3, MISSING], [2, -1]]
    assert vocabulary.learn([bags.to_frame().lazy()], known=earlier)["id"].to_list() == [2, 3]


@pytest.mark.parametrize("large", [0, 1000])
def test_values_in_another_type_are_found_on_disk(tmp_path, monkeypatch, large):
    monkeypatch.setattr(vocabulary, "_LARGE", large)
    learned([1, 1, 2, 3]).write_parquet(tmp_path / "0.parquet")
    values = pl.Series(["3", "x", None])
    found = vocabulary.read_entries(values, tmp_path / "0.parquet")
    assert vocabulary.encode(values, found, 1)[:, 0].tolist() == [4, UNSEEN, MISSING]
