"""Logs that come after training get the ids that training gave."""

import gzip
import json

import numpy as np
import polars as pl
import pytest
from criteo_lines import IN_TIME, dense_of, ids_of, text
from served import encode_logs, encoder_of

from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.formats.criteo_text import CATEGORICALS, INTEGERS
from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.preprocessing.hexadecimal import from_hexadecimal
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import CRITEO, Schema
from dlrm_jax.data.preprocessing.unseen_values import UnseenValues
from dlrm_jax.errors import UserError


def without_labels(content):
    return "".join(line.split("\t", 1)[1] + "\n" for line in content.splitlines())


@pytest.mark.parametrize("form", [str, without_labels])
def test_criteo_text(tmp_path, form):
    (tmp_path / "train.txt").write_text(text(70))
    (tmp_path / "new.gz").write_bytes(gzip.compress(form(text(70)).encode()))
    preprocess([tmp_path / "train.txt"], tmp_path / "out", Options(min_count=5))
    dataset = load_directory(tmp_path / "out")
    (found,) = encode_logs([tmp_path / "new.gz"], tmp_path / "out")
    expected = np.concatenate([ids_of(dataset, name) for name in IN_TIME])
    np.testing.assert_array_equal(found.ids, expected)
    expected = np.concatenate([dense_of(dataset, name) for name in IN_TIME])
    np.testing.assert_array_equal(found.dense, expected)
    # Rows in memory have the same texts, or the numbers that these mean.
    lines = [line.split("\t")[1:] for line in text(70).splitlines()]
    rows = pl.DataFrame(lines, schema=[*INTEGERS, *CATEGORICALS], orient="row").select(
        pl.col(INTEGERS).replace("", None), pl.col(CATEGORICALS)
    )
    encoder = encoder_of(tmp_path / "out")
    numbers = pl.col(CATEGORICALS).replace("", None).str.to_integer(base=16, strict=False)
    for given in (rows, rows.with_columns(numbers)):
        same = encoder.rows(given, "rows")
        np.testing.assert_array_equal(same.ids, found.ids)
        np.testing.assert_array_equal(same.dense, found.dense)
    with pytest.raises(UserError, match=r"\(from 0\), row 0, column C2: expected up to 8 hexadec"):
        encoder.rows(rows.with_columns(C2=pl.lit("x")), "rows")
    labels = [int(line[0]) for line in text(70).split("\n")[:-1]]
    np.testing.assert_array_equal(found.labels, [np.nan] * 70 if form is without_labels else labels)


@pytest.mark.parametrize("dtype", [pl.Categorical, pl.Enum(["68fd1e64", "", "0a"])])
def test_hexadecimal_text_may_have_a_dictionary(dtype):
    texts = pl.DataFrame({name: ["68fd1e64", "", "0a", None] for name in CATEGORICALS})
    expected = from_hexadecimal("rows", CRITEO, texts)
    assert expected["C1"].to_list() == [0x68FD1E64, None, 10, None]
    assert from_hexadecimal("rows", CRITEO, texts.cast(dtype)).equals(expected)


def test_one_row_of_a_users_log(tmp_path):
    frame = pl.DataFrame(
        {
            "y": [0, 1] * 20,
            "shop": ["a", "b"] * 20,
            "seen": [[1, 2, 3]] * 40,
            "w": [1.0] * 40,
            "t": range(10**9, 10**9 + 40 * 3600, 3600),
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    schema = Schema("y", ("shop", "seen"), (), {"seen": 2}, weight="w", timestamp="t")
    preprocess([tmp_path / "log.parquet"], tmp_path / "out", Options(schema))
    new = pl.DataFrame({"seen": [[3, 9, 1], [], None], "shop": ["b", None, "c"]})
    new.write_parquet(tmp_path / "new.parquet")
    (found,) = encode_logs([tmp_path / "new.parquet"], tmp_path / "out")
    assert np.asarray(found.ids).tolist() == [[3, 0, 0], [1, -1, -1], [0, -1, -1]]
    encoder = encoder_of(tmp_path / "out")
    np.testing.assert_array_equal(encoder.rows(new, "rows").ids, found.ids)
    assert encoder.rows(new[:0], "rows").ids.shape == (0, 3)
    with pytest.raises(UserError, match="got Int64; give a value alone as a list of one") as bad:
        encoder.rows(new.with_columns(seen=pl.lit(3, pl.Int64)), "rows")
    assert "Parquet" not in str(bad.value)
    # Those of training, from memory: with categories, and arrays of one length.
    data = load_directory(tmp_path / "out")
    same = frame.with_columns(pl.col("shop").cast(pl.Categorical), pl.col("seen").list.to_array(3))
    expected = np.concatenate([ids_of(data, name) for name in IN_TIME])
    np.testing.assert_array_equal(encoder.rows(same, "rows").ids, expected)


def test_several_files_and_a_value_that_nobody_numbered(tmp_path):
    (tmp_path / "train.txt").write_text(text(70))
    preprocess([tmp_path / "train.txt"], tmp_path / "out", Options(compatible="reference"))
    paths = [tmp_path / "train.txt"] * 2
    first, second = encode_logs(paths, tmp_path / "out")
    np.testing.assert_array_equal(first.ids, second.ids)
    (tmp_path / "new.txt").write_text("\t".join(["1", *["5"] * 13, *["0badcafe"] * 26]) + "\n")
    with pytest.raises(UserError, match="C1: the value 195939070 isn't in the vocabulary"):
        encode_logs([tmp_path / "new.txt"], tmp_path / "out")


@pytest.mark.parametrize("sizes", [(), (2,) * 26])
def test_a_temporary_directory_is_for_multi_hot_ids(tmp_path, monkeypatch, sizes):
    (tmp_path / "train.txt").write_text(text(70))
    preprocess([tmp_path / "train.txt"], tmp_path / "out", Options(multi_hot_sizes=sizes))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    if not sizes:
        encoder_of(tmp_path / "out")
        return
    with pytest.raises(UserError, match=r"multi-hot tables need .* directory: .*; name .* TMPDIR"):
        encoder_of(tmp_path / "out")


def test_malformed_lines_are_never_left_out(tmp_path):
    (tmp_path / "train.txt").write_text(text(70) + "nonsense\n")
    preprocess([tmp_path / "train.txt"], tmp_path / "out", Options(on_bad_line="skip"))
    with pytest.raises(UserError, match="line 71: expected 40"):
        encode_logs([tmp_path / "train.txt"], tmp_path / "out")


def test_types_differ_between_training_and_serving(tmp_path):
    frame = pl.DataFrame(
        {
            "y": [0, 1] * 20,
            "n": [1, 2] * 20,
            "s": pl.Series(["a", "b"] * 20, dtype=pl.Categorical),
            "bag": [["x"], ["y", "x"]] * 20,
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    schema = Schema("y", ("n", "s", "bag"), (), {"bag": 2})
    preprocess([tmp_path / "log.parquet"], tmp_path / "out", Options(schema))

    def served(**columns):
        pl.DataFrame(columns).write_parquet(tmp_path / "new.parquet")
        (found,) = encode_logs([tmp_path / "new.parquet"], tmp_path / "out")
        return np.asarray(found.ids).tolist()

    empty = pl.Series([[], []], dtype=pl.List(pl.Null))
    expected = [[3, 2, -1, -1], [1, 3, -1, -1]]
    assert served(n=[2.0, None], s=["a", "b"], bag=empty) == expected
    expected = [[3, 1, 2, -1], [2, 1, 3, 2]]
    assert served(n=["2", "1"], s=[None, None], bag=[["x"], ["y", "x"]]) == expected
    expected = [[3, 2, 2, -1], [0, 3, -1, -1]]
    assert served(n=["2", "many"], s=["a", "b"], bag=[["x"], []]) == expected
    with pytest.raises(UserError, match="column n: expected values of type Int64"):
        served(n=[True, False], s=["a", "b"], bag=[["x"], []])
    # Labels of what is to be predicted may be there and say nothing.
    expected = [[3, 2, 2, -1]]
    assert served(y=[None], n=[2], s=["a"], bag=[["x"]]) == expected


def test_columns_that_training_had_not_are_counted(tmp_path):
    frame = pl.DataFrame({"y": [0, 1] * 20, "n": [1, 2] * 20, "bag": [["x"], ["y", "x"]] * 20})
    frame.write_parquet(tmp_path / "log.parquet")
    schema = Schema("y", ("n", "bag"), (), {"bag": 2})
    preprocess([tmp_path / "log.parquet"], tmp_path / "out", Options(schema))
    new = pl.DataFrame({"n": [" 1", "2", None, "4"], "bag": [["x", "z"], [], ["x"], ["y"]]})
    new.write_parquet(tmp_path / "new.parquet")
    (found,) = encode_logs([tmp_path / "new.parquet"], tmp_path / "out")
    counts = UnseenValues.of(Metadata.read(tmp_path / "out"))
    for rows in (slice(1), slice(1, None), slice(0)):
        counts.add(np.asarray(found.ids)[rows])
    assert counts.shares() == {"n": 2 / 3, "bag": 1 / 4}
    assert counts.warnings() == []


def test_torchrecs_dense_features_do_not_depend_on_the_rows_beside(tmp_path):
    (tmp_path / "train.txt").write_text(text(70))
    preprocess([tmp_path / "train.txt"], tmp_path / "out", Options(compatible="torchrec"))
    whole, row = (
        encode_logs([tmp_path / name], tmp_path / "out")[0].dense
        for name in ("train.txt", "row.txt")
        if (tmp_path / "row.txt").write_text(text(70).splitlines()[4] + "\n")
    )
    np.testing.assert_array_equal(row[0], whole[4])


def test_torchrecs_dense_features_of_days_that_differ(tmp_path):
    paths = [tmp_path / f"day_{day}" for day in range(2)]
    for day, path in enumerate(paths):
        path.write_text(text(70).replace("\t-", f"\t-{day + 1}"))
    preprocess(paths, tmp_path / "out", Options(compatible="torchrec"))
    with pytest.raises(UserError, match=r"which was -12\.0, -22\.0 in training"):
        encode_logs(paths[:1], tmp_path / "out")


@pytest.mark.parametrize("smallest", [[], [float("nan")], [float("inf")]])
def test_torchrecs_dense_features_of_a_damaged_description(tmp_path, smallest):
    (tmp_path / "train.txt").write_text(text(70))
    preprocess([tmp_path / "train.txt"], tmp_path / "out", Options(compatible="torchrec"))
    path = tmp_path / "out" / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"smallest": smallest}))
    with pytest.raises(UserError, match=f"{path} is damaged: smallest: expected a finite num"):
        encode_logs([tmp_path / "train.txt"], tmp_path / "out")


@pytest.fixture
def prepared(tmp_path):
    """A model's data: integers, texts and numbers; "NA" is a value of Parquet alone."""
    frame = pl.DataFrame(
        {"y": [0, 1] * 20, "n": [1, 2] * 20, "s": ["a", "NA"] * 20, "x": [1.0] * 40}
    )
    frame.write_parquet(tmp_path / "log.parquet")
    preprocess(
        [tmp_path / "log.parquet"], tmp_path / "out", Options(Schema("y", ("n", "s"), ("x",)))
    )
    return tmp_path / "out"


def serve_csv(prepared, *rows):
    path = prepared.with_name("new.csv")
    path.write_text("\n".join(["n,s,x", *rows]) + "\n")
    (found,) = encode_logs([path], prepared)
    return found


def test_garbage_in_a_column_of_integers_is_unseen(prepared):
    found = serve_csv(prepared, "2,a,1", "many,b,1", "1.5,a,1", "007,a,1")
    assert np.asarray(found.ids)[:, 0].tolist() == [3, 0, 0, 0]


def test_missing_values_in_csv_for_data_of_parquet(prepared):
    found = serve_csv(prepared, ",,", "NA,NA,0", "nan,null,0")
    assert np.asarray(found.ids).tolist() == [[1, 1], [0, 3], [0, 0]], "NA is a value of training"
    assert found.dense.tolist() == [[0]] * 3


def test_bad_numbers_are_named(prepared):
    message = "new.csv, row 2, column x: expected a finite number of float32 or nothing, got '{}'"
    for value in ("inf", "1e39", "2;5", "NULL", "null"):
        with pytest.raises(UserError, match=message.format(value)):
            serve_csv(prepared, "2,a,1", f"2,a,{value}")
