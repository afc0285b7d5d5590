"""Logs of a user's own, in Parquet."""

import datetime
import decimal
import json

import numpy as np
import polars as pl
import pytest
from criteo_lines import IN_TIME, dense_of, expected_ids, ids_of

from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.preprocessing.logs import valid_rows
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError


def test_a_users_own_log(tmp_path):
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "when": range(40),
            "clicked": rng.random(40) < 0.5,
            "price": [None, *rng.normal(size=39)],
            "shop": [None if x == 0 else f"shop {x}" for x in rng.integers(0, 5, 40)],
            "seen": [[int(x) for x in rng.integers(0, 9, n)] for n in rng.integers(0, 6, 40)],
            "importance": rng.random(40),
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    schema = tmp_path / "schema.json"
    fields = {
        "label": "clicked",
        "dense": ["price"],
        "categorical": ["shop", "seen"],
        "bag_lengths": {"seen": 3},
        "weight": "importance",
        "dense_transform": "none",
    }
    schema.write_text(json.dumps(fields))
    preprocess([tmp_path / "log.parquet"], tmp_path / "out", Options(Schema.from_json(schema)))
    dataset = load_directory(tmp_path / "out")
    assert dataset.bag_lengths == (1, 3)
    train = len(dataset.train)
    ids = np.concatenate([ids_of(dataset, name) for name in IN_TIME])
    assert ids[:, 0].tolist() == expected_ids(frame["shop"].to_list(), train)
    seen = [x for bag in frame["seen"].to_list()[:train] for x in bag[:3]]
    by_frequency = sorted(set(seen), key=lambda v: (-seen.count(v), v))
    known = {value: i + 2 for i, value in enumerate(by_frequency)}
    for bag, found in zip(frame["seen"].to_list(), ids[:, 1:].tolist(), strict=True):
        expected = [known.get(x, 0) for x in bag[:3]]
        assert found == expected + [-1] * (3 - len(expected))
    dense = np.concatenate([dense_of(dataset, name)[:, 0] for name in IN_TIME])
    np.testing.assert_allclose(dense, frame["price"].fill_null(0).to_numpy(), rtol=1e-6)
    weights = np.concatenate(
        [day.arrays["sample_weights"] for name in IN_TIME for day in dataset.splits[name].days]
    )
    np.testing.assert_allclose(weights, frame["importance"].to_numpy(), rtol=1e-6)
    # The vocabulary maps ids back to what the user knows.
    shops = pl.read_parquet(tmp_path / "out" / "vocabularies" / "0.parquet")
    assert set(shops["value"]) == set(frame["shop"][:train].drop_nulls())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "nothing"}, "has no column 'nothing' that the schema names"),
        ({"label": "shop"}, "row 1, column shop: expected 0 or 1, got 'a'"),
        (
            {"dense": ["shop2"]},
            "row 1, column shop2: expected a finite number of float32 or nothing, got 'a'",
        ),
        (
            {"dense": ["big"]},
            "row 3, column big: expected a finite number of float32 or nothing, got inf",
        ),
        ({"weight": "debt"}, "row 2, column debt: expected 0 or a number of float32, .* got -1.0"),
        ({"weight": "tiny"}, "row 3, column tiny: expected .* from 1.2e-38 on, got 1e-39"),
        ({"categorical": ["nested"]}, "column nested: expected a list of values"),
        ({"categorical": ["bag"]}, "column bag holds lists: the schema's bag_lengths"),
        ({"bag_lengths": {"shop": 3}}, "column shop: expected lists, as the schema gives a bag"),
        ({"dense": ["day"]}, "column day: expected numbers, got Date"),
        ({"dense": ["bag"]}, r"column bag: expected numbers, got List"),
        ({"timestamp": "clock"}, "column clock: expected dates, times or seconds since 1970"),
        ({"timestamp": "no day"}, "row 1, column no day: expected a date.* got '2026-02-30 10:00'"),
    ],
)
def test_logs_that_do_not_fit_their_schema(tmp_path, change, message):
    frame = pl.DataFrame(
        {
            "y": [0, 1] * 10,
            "shop": ["a"] * 20,
            "shop2": ["a"] * 20,
            "bag": [[1]] * 20,
            "nested": [[[1]]] * 20,
            "big": [0.0, None, np.inf, *[1.0] * 17],
            "debt": [1.0, -1.0] * 10,
            "tiny": [0.0, 1.2e-38, 1e-39, *[1.0] * 17],
            "day": [datetime.date(2026, 1, 1)] * 20,
            "clock": [datetime.time(12)] * 20,
            "no day": ["2026-02-30 10:00"] * 20,
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    fields = {"label": "y", "categorical": ["shop"], **change}
    if change.get("label") == "shop":
        fields["categorical"] = ["bag"]
        fields["bag_lengths"] = {"bag": 1}
    (tmp_path / "schema.json").write_text(json.dumps(fields))
    schema = Schema.from_json(tmp_path / "schema.json")
    with pytest.raises(UserError, match=message):
        preprocess([tmp_path / "log.parquet"], tmp_path / "out", Options(schema))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label": "y"}, "categorical"),
        ({"label": "y", "categorical": []}, "at least one categorical"),
        ({"label": "y", "categorical": ["y"]}, "'y' is named more than once"),
        ({"label": "y", "categorical": ["*"]}, r"'\*' is a pattern to Polars, .* rename it"),
        ({"label": "^y$", "categorical": ["a"]}, r"'\^y\$' is a pattern to Polars, .* rename it"),
        ({"label": "y", "categorical": ["a"], "groups": ["^g$"]}, r"'\^g\$' is a pattern"),
        ({"label": "y", "categorical": ["a"], "colour": 1}, "its fields are label"),
        ({"label": "y", "categorical": ["a"], "bag_lengths": {"b": 1}}, "isn't categorical"),
        ({"label": "y", "categorical": ["a"], "dense_transform": "sqrt"}, "one of log, none"),
        ({"label": [], "categorical": ["a"]}, "label: expected one name, or a list of two"),
        ({"label": ["y", "a"], "categorical": ["a"]}, "'a' is named more than once"),
        ({"label": ["y", "\n"], "categorical": ["a"]}, "schema: label: "),
        ({"label": "y", "categorical": ["a"], "bag_lengths": {"a": True}}, "from 1 to 65536"),
        ({"label": "y", "categorical": ["a"], "bag_lengths": {"a": 10**12}}, "from 1 to 65536"),
        ({"label": "y", "categorical": ["a"], "groups": [None]}, "groups: .* got None"),
        ({"label": "y", "categorical": ["a"], "groups": [""]}, "groups: .* got ''"),
        ({"label": "y", "categorical": ["a"], "dense": [None]}, "dense: .* got None"),
        ({"label": "y", "categorical": ["a"], "dense": [""]}, "dense: .* got ''"),
        ({"label": ["y", None], "categorical": ["a"]}, "label: .* got None"),
        ({"label": "", "categorical": ["a"]}, "label: .* got ''"),
        ({"label": "y", "categorical": ["a", 3]}, "categorical: expected names of columns, got 3"),
        (
            {"label": "y", "categorical": ["a"], "weight": ["w"]},
            r"weight: .* one name, got \['w'\]",
        ),
        (
            {"label": "y", "categorical": ["a"], "timestamp": []},
            r"timestamp: .* one name, got \[\]",
        ),
        ({"label": "y", "categorical": ["a"], "weight": ""}, "weight: expected one name, got ''"),
        ({"label": "y", "categorical": ["a"], "timestamp": ""}, "timestamp: .* one name, got ''"),
        *(
            ({"label": "y", "categorical": ["a"], field: value}, r"whole characters, got .*ud800")
            for field, value in (
                ("label", "\ud800"),
                ("categorical", ["a", "\ud800"]),
                ("dense", ["b\ud800"]),
                ("weight", "\ud800"),
                ("timestamp", "\ud800"),
                ("groups", ["\ud800"]),
                ("separator", "\ud800"),
                ("header", ["y", "a", "\ud800"]),
            )
        ),
        (None, "expected an object with label and categorical"),
    ],
)
def test_bad_schemas(tmp_path, fields, message):
    (tmp_path / "schema.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=message):
        Schema.from_json(tmp_path / "schema.json")


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (pl.Datetime("us"), 2**63 - 1),  # infinity, as some programs write it
        (pl.Datetime("us"), 253_402_300_800 * 10**6),  # the year 10000
        (pl.Datetime("us"), -62_135_596_801 * 10**6),  # the year 0
        (pl.Datetime("ms", "Europe/Paris"), 2**63 - 1),
        (pl.Datetime("ns"), None),
        (pl.Date, -(2**31)),
        (pl.String, "0000-12-31"),
        (pl.String, "9999-12-31 23:59:59-01:00"),
    ],
)
def test_times_that_are_no_dates_of_python_are_malformed_rows(kind, wrong):
    good = "1969-07-20" if kind == pl.String else -165
    batch = pl.DataFrame({"y": [0, 1, 0], "when": pl.Series([good, wrong, good]).cast(kind)})
    schema = Schema("y", ("a",), timestamp="when")
    kept = valid_rows("log.parquet", schema, batch, 1, "skip")
    assert kept["when"].dtype == pl.Datetime("us")
    assert {time.year for time in kept["when"]} == {1969}
    assert len(kept) == 2
    got = "no value" if wrong is None else repr(wrong)
    with pytest.raises(UserError, match=rf"log.parquet, row 2, column when: expected .*got {got}"):
        valid_rows("log.parquet", schema, batch, 1)


def test_days_of_different_types(tmp_path):
    for number, values in enumerate([[1, 2], ["a", "b"]]):
        pl.DataFrame({"y": [0, 1], "shop": values}).write_parquet(tmp_path / f"{number}.parquet")
    paths = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    with pytest.raises(UserError, match=r"shop is Int64 in .*0\.parquet, but String in .*1\.parq"):
        preprocess(paths, tmp_path / "out", Options(Schema("y", ("shop",))))


def test_bad_rows_are_counted_when_skipped(tmp_path):
    frame = pl.DataFrame(
        {"y": [0, 1, 7, 1] * 10, "x": [1.0, 2.0, 3.0, np.inf] * 10, "a": range(40)}
    )
    frame.write_parquet(tmp_path / "log.parquet")
    options = Options(Schema("y", ("a",), ("x",)), on_bad_line="skip")
    metadata = preprocess([tmp_path / "log.parquet"], tmp_path / "out", options)
    assert (metadata.skipped_lines, sum(metadata.days)) == (20, 20)


def test_a_column_that_counts_what_is_missing(tmp_path):
    frame = pl.DataFrame(
        {"y": [0, 1] * 20, "x": [1.0, None, np.nan, 2.0] * 10, "a": [None, *range(39)]}
    )
    frame.write_parquet(tmp_path / "log.parquet")
    schema = Schema("y", ("a",), ("x",))
    metadata = preprocess([tmp_path / "log.parquet"], tmp_path / "out", Options(schema))
    assert metadata.missing == {"x": 20, "a": 1}


def test_columns_with_the_names_of_criteos(tmp_path):
    names = ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
    pl.DataFrame({name: [0, 1] * 10 for name in names}).write_parquet(tmp_path / "log.parquet")
    schema = Schema("label", tuple(names[14:]), tuple(names[1:14]))
    metadata = preprocess([tmp_path / "log.parquet"], tmp_path / "o[1]", Options(schema))
    assert metadata.table_rows == [4] * 26


def test_values_of_all_types(tmp_path):
    values = {
        "date": [datetime.date(2026, 1, 1), datetime.date(2026, 1, 2)],
        "time": [datetime.datetime(2026, 1, 1), datetime.datetime(2026, 1, 2)],
        "flag": [True, False],
        "number": [1.5, np.nan],
        "enum": pl.Series(["a", "b"], dtype=pl.Enum(["b", "a"])),
        "bytes": [b"a", b"b"],
        "decimal": [decimal.Decimal("1.50"), decimal.Decimal("2.25")],
    }
    frame = pl.DataFrame({"y": [0, 1], **values})
    pl.concat([frame] * 20).write_parquet(tmp_path / "log.parquet")
    options = Options(Schema("y", tuple(values)))
    metadata = preprocess([tmp_path / "log.parquet"], tmp_path / "out", options)
    assert metadata.table_rows == [4, 4, 4, 3, 4, 4, 4]
    assert metadata.missing["number"] == 20  # NaN is none


def test_integers_of_several_widths_are_the_same_values(tmp_path):
    paths = [tmp_path / f"{i}.parquet" for i in range(2)]
    for path, kind in zip(paths, (pl.Int32, pl.Int64), strict=True):
        column = pl.Series("a", [5, 6] * 5, dtype=kind)
        pl.DataFrame({"y": [0, 1] * 5, "a": column}).write_parquet(path)
    preprocess(paths, tmp_path / "out", Options(Schema("y", ("a",))))
    dataset = load_directory(tmp_path / "out")
    for split in IN_TIME:
        assert set(ids_of(dataset, split)[:, 0]) == {2, 3}


def test_parquet_without_a_schema(tmp_path):
    pl.DataFrame({"y": [0, 1]}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(UserError, match=r"log.parquet is a Parquet file; .*\(--schema"):
        preprocess([tmp_path / "log.parquet"], tmp_path / "out", Options())


def test_a_schema_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "schema.json").write_text('{"label": "y", "categorical": ["a"]}', "utf-8-sig")
    assert Schema.from_json(tmp_path / "schema.json").categorical == ("a",)
