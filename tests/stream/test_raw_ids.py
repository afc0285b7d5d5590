from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.data.preprocessing import serving
from dlrm_jax.data.preprocessing.hashed_rows import HashedRows
from dlrm_jax.data.preprocessing.raw_id_encoder import RawIdEncoder
from dlrm_jax.data.preprocessing.raw_ids import ABSENT_ID, MISSING, id_of, ids_of, joined, raw_ids
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError


def test_integers_are_their_own_ids_in_any_type():
    expected = np.array([7, -1, 2**40], np.int64).view(np.uint64).tolist()
    for values in (
        pl.Series([7, -1, 2**40]),
        pl.Series([7.0, -1.0, 2.0**40]),
        pl.Series(["7", "-1", str(2**40)]),
        pl.Series(["7.0", "-1.0", f"{2**40}.0"]),
        pl.Series([7, -1, 2**40], dtype=pl.Int128),
    ):
        assert ids_of(values).tolist() == expected, values.dtype
    assert ids_of(pl.Series([2**64 - 1], dtype=pl.UInt64)).tolist() == [2**64 - 1]
    assert ids_of(pl.Series([str(2**64 - 1)])).tolist() == [2**64 - 1]


def test_other_values_have_the_hash_of_their_text():
    day = datetime.date(2026, 11, 25)
    for values, texts in (
        (pl.Series(["a", "007", "", "a"]), ["a", "007", "", "a"]),
        (pl.Series([0.5]), ["0.5"]),
        (pl.Series([day]), ["2026-11-25"]),
        (pl.Series([True]), ["true"]),
        (pl.Series(["a"], dtype=pl.Categorical), ["a"]),
    ):
        assert ids_of(values).tolist() == [xxhash.xxh3_64_intdigest(x.encode()) for x in texts]


@pytest.mark.parametrize("kind", [pl.Int8, pl.Int64, pl.UInt64, pl.Float64, pl.String, pl.Null])
def test_missing_values_have_an_id(kind):
    assert ids_of(pl.Series([None, None], dtype=kind)).tolist() == [MISSING, MISSING]
    assert ids_of(pl.Series([float("nan")])).tolist() == [MISSING]


def test_what_the_docs_say_of_missing_values_and_datetimes():
    for edge in (pl.Series([-(2**63)]), pl.Series([2**63], dtype=pl.UInt64)):
        assert ids_of(edge).tolist() == [MISSING]
    now = pl.Series([datetime.datetime(2026, 11, 25)])
    assert len({ids_of(now.dt.cast_time_unit(unit)).item() for unit in ("ms", "us", "ns")}) == 3


def test_bags_lie_side_by_side():
    schema = Schema("y", ("a", "b"), bag_lengths={"b": 2})
    lists = pl.Series([[1], None, [2, 3], [], [None]], dtype=pl.List(pl.Int64))
    frame = pl.DataFrame({"c0": [5, 6, None, 7, 8], "c1": lists})
    found = raw_ids(frame, schema, "x")
    yes, no = True, False
    assert found.present.tolist() == [
        [yes, yes, no], [yes, no, no], [yes, yes, yes], [yes, no, no], [yes, yes, no]
    ]  # fmt: skip
    assert found.ids[found.present].tolist() == [5, 1, 6, MISSING, 2, 3, 7, 8, MISSING]


def test_a_type_without_text_is_refused():
    frame = pl.DataFrame({"c0": [b"x"]})
    with pytest.raises(UserError, match="x, column a: expected numbers, text or dates, got Binary"):
        raw_ids(frame, Schema("y", ("a",)), "x")


def test_rows_are_hashed_by_table():
    schema = Schema("y", ("a", "b", "c"), bag_lengths={"c": 2}, shared={"b": "a"})
    n = 50_000
    frame = pl.DataFrame({f"c{i}": np.arange(n) for i in range(2)}).with_columns(
        c2=pl.concat_list("c0"),
    )
    encode = HashedRows(schema, [100, 100, 1000])
    rows = encode(raw_ids(frame, schema, "x"))
    assert rows.dtype == np.int32
    assert (rows[:, 0] == rows[:, 1]).all()
    assert (rows[:, 3] == ABSENT).all()
    for column, size in ((0, 100), (2, 1000)):
        counts = np.bincount(rows[:, column], minlength=size)
        assert len(counts) == size
        # Poisson: each count is within six deviations of its mean.
        assert np.abs(counts - n / size).max() < 6 * (n / size) ** 0.5
    # Tables that aren't shared have hashes of their own.
    assert 0.005 < np.mean(rows[:, 0] == rows[:, 2] % 100) < 0.015
    assert (encode(raw_ids(frame[:7], schema, "x")) == rows[:7]).all()


def test_a_value_alone_has_the_id_of_its_column():
    texts = ["7", "007", "-7", "-0", "", "x", "é", "\uff11", "+5", "-", "--1", "9" * 5000]
    texts += [str(x) for x in (2**64 - 1, 2**64, -(2**63), -(2**63) - 1)]
    texts += [
        "7.0",
        "14.00",
        "-0.0",
        "-7.0",
        "0.0",
        "007.0",
        "\u0663.0",
        "7.0\n",
        "7.",
        ".0",
        "1.50",
    ]
    assert [id_of(x) for x in texts] == ids_of(pl.Series(texts)).tolist()
    numbers = [0, -1, 2**63 - 1, -(2**63)]
    assert [id_of(x) for x in numbers] == ids_of(pl.Series(numbers)).tolist()
    large = pl.Series([2**64 - 1], dtype=pl.UInt64)
    assert id_of(2**64 - 1) == ids_of(large).item() == id_of(-1)
    assert id_of(None) == MISSING == ids_of(pl.Series([None])).item()
    floats = [7.0, -0.0, 0.5, 1e-7, 1e22, -3e18, 2.0**63, 0.1, float("nan")]
    assert [id_of(x) for x in floats] == ids_of(pl.Series(floats)).tolist()
    assert [id_of(x) for x in (True, False)] == ids_of(pl.Series([True, False])).tolist()
    wide = [2**64, -(2**63) - 1, 2**126]
    assert [id_of(x) for x in wide] == ids_of(pl.Series(wide, dtype=pl.Int128)).tolist()
    for other in (b"x", 2**127, float("inf"), [7]):
        assert id_of(other) is None


@given(
    st.one_of(st.floats(), st.integers(), st.booleans(), st.text("0123456789.-e\n ", max_size=9))
)
def test_any_value_alone_has_the_id_of_its_column(value: object):
    found = id_of(value)
    if found is not None:
        kind = pl.Int128 if type(value) is int else None
        assert found == ids_of(pl.Series([value], dtype=kind)).item()


def test_a_file_with_the_id_of_an_unused_place_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(serving, "_PLACES", 2)  # several parts, whose rows count on
    path = tmp_path / "log.csv"
    pl.DataFrame({"y": 0, "a": [1, 2, 3, 4, 5], "b": [1, 2, 3, ABSENT_ID, 5]}).write_csv(path)
    with pytest.raises(UserError, match=r"log.csv, row 4, column b: expected other ids"):
        list(RawIdEncoder(Schema("y", ("a", "b"))).files([path]))


def test_the_id_of_an_unused_place_is_no_value():
    frame = pl.DataFrame({"c0": [-1, ABSENT_ID - 2**64]})
    schema = Schema("y", ("a",))
    with pytest.raises(UserError, match=r"x, row 8, column a: expected other ids than -922337"):
        joined(raw_ids(frame, schema, "x"), schema, "x", 7)
    bags, of_bags = pl.DataFrame({"c0": [[-1], []]}), Schema("y", ("a",), bag_lengths={"a": 2})
    own = joined(raw_ids(bags, of_bags, "x"), of_bags, "x")
    absent = ABSENT_ID - 2**64
    assert own.tolist() == [[-1, absent], [absent, absent]]
