"""Data that are odd: each works, or is one clear error."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from served import encode_logs

from dlrm_jax.cli.data_report import write_report
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.metadata import METADATA
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError

PREVIOUS = Path(__file__).parents[1] / "previous"
ONE, BAG = Schema("y", ("a",), ("x",)), Schema("y", ("a",), ("x",), {"a": 3})


def log(rows, **changes):
    frame = pl.DataFrame({"y": np.arange(rows) % 2, "a": range(rows), "x": [1.5] * rows})
    given = {k: x if isinstance(x, pl.Series) else pl.lit(x) for k, x in changes.items()}
    return frame.with_columns(**given)


def lists(*values):
    return pl.Series([*values, *[[]] * (14 - len(values))], dtype=pl.List(pl.Int64))


def prepared(directory, schema, *frames, **options):
    """Rows of the tables, and the first ids of each file, as training and prediction see it."""
    paths = [directory / f"{i}.parquet" for i in range(len(frames))]
    for path, frame in zip(paths, frames, strict=True):
        frame.write_parquet(path)
    metadata = preprocess(paths, directory / "out", Options(schema, **options))
    data = load_directory(directory / "out")
    served = encode_logs(paths, directory / "out")
    assert sum(map(len, served)) == sum(map(len, data.splits.values()))
    return metadata.table_rows, [np.asarray(examples.ids)[0].tolist() for examples in served]


@pytest.mark.parametrize(
    ("schema", "changes", "rows", "ids"),
    [
        (ONE, {"y": 1}, 14, [2]),
        (ONE, {"a": 7, "x": 0.0, "y": 0}, 3, [2]),
        (ONE, {"a": None, "x": None}, 2, [1]),
        (ONE, {"a": pl.Series([None] * 14, dtype=pl.String)}, 2, [1]),
        (BAG, {"a": None}, 2, [-1, -1, -1]),
        (BAG, {"a": lists()}, 2, [-1, -1, -1]),
        (BAG, {"a": lists([None], [None])}, 2, [1, -1, -1]),
        (BAG, {"a": lists(list(range(100_000)))}, 5, [2, 3, 4]),
    ],
    ids=["label 1", "constant", "no values", "no texts", "no bags", "empty", "nothing", "long"],
)
def test_a_log(tmp_path, schema, changes, rows, ids):
    assert prepared(tmp_path, schema, log(14, **changes)) == ([rows], [ids])


def test_a_report_on_nothing(tmp_path):
    schema = Schema("y", ("a", "bag", "none"), ("x", "void"), {"bag": 2})
    odd = log(14, y=1, a=7, x=0.0, void=None, none=None, bag=lists())
    assert prepared(tmp_path, schema, odd) == ([3, 2, 2], [[2, -1, -1, 1]])
    write_report(tmp_path / "out", tmp_path / "report.html")


NOTHING = log(4, a=None)


@pytest.mark.parametrize(
    ("schema", "days", "ids"),
    [
        (ONE, [NOTHING, log(4), log(4)], [[1], [2], [2]]),
        (ONE, [log(4), NOTHING, NOTHING], [[2], [1], [1]]),
        (
            BAG,
            [NOTHING, log(4, a=pl.Series([[3]] * 4)), NOTHING],
            [[-1] * 3, [2, -1, -1], [-1] * 3],
        ),
    ],
)
def test_a_day_without_values_has_no_type(tmp_path, schema, days, ids):
    assert prepared(tmp_path, schema, *days)[1] == ids


def test_values_that_come_after_training_without_any(tmp_path):
    prepared(tmp_path, ONE, log(14, a=None))
    log(2).write_parquet(tmp_path / "later.parquet")
    (found,) = encode_logs([tmp_path / "later.parquet"], tmp_path / "out")
    assert np.asarray(found.ids).tolist() == [[0], [0]]


@pytest.mark.parametrize("rows", [0, 1, 13])
def test_too_few_rows(tmp_path, rows):
    with pytest.raises(UserError, match=r"is empty; expected rows|at least 14 rows|14 at least"):
        prepared(tmp_path, ONE, log(rows))


def test_columns_that_are_there_twice(tmp_path):
    path = tmp_path / "log.parquet"
    log(14, b=1).rename({"a": "a one", "b": "a two"}).write_parquet(
        path, compression="uncompressed"
    )
    path.write_bytes(path.read_bytes().replace(b"a two", b"a one"))
    with pytest.raises(
        UserError, match=r"log\.parquet: column with name 'a one' has more than one"
    ):
        preprocess([path], tmp_path / "out", Options(Schema("y", ("a one",))))
    (tmp_path / "schema.json").write_text('{"label": "y", "categorical": ["a"], "label": "x"}')
    with pytest.raises(UserError, match=r"schema\.json: 'label' is there twice"):
        Schema.from_json(tmp_path / "schema.json")


def test_paths(tmp_path):
    """With spaces, commas, markup and other scripts, through links of files and directories."""
    real, linked = tmp_path / "1, 2 <b>", tmp_path / "линк 国"
    real.mkdir()
    linked.symlink_to(real)
    log(14).write_parquet(real / "log.parquet")
    (linked / "läg, 1.parquet").symlink_to("log.parquet")
    preprocess([linked / "läg, 1.parquet"], linked / "out, %s", Options(ONE))
    (real / "same").symlink_to("out, %s")
    assert load_directory(linked / "same").table_rows == (14,)
    write_report(linked / "same", linked / "r e.html")
    (found,) = encode_logs([linked / "läg, 1.parquet"], linked / "same")
    assert len(found) == 14


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["days"], "7"),
        (["days", 0], 2.5),
        (["splits", "train", 0, 0], 10**6),
        (["splits", "test", 0, 2], 99),
        (["splits"], {}),
        (["table_rows"], [14, 14]),
        (["bag_lengths", 0], None),
        (["made_from", "inputs"], [5]),
        (["made_from", "inputs"], 5),
        (["made_from", "options"], None),
        (["made_from", "options", "schema"], {}),
        (["made_from", "options", "schema", "bag_lengths"], 3),
        (["made_from", "options", "compatible"], ["x"]),
        (["made_from", "options", "min_count"], "x"),
        (["id_ranges"], []),
    ],
)
def test_a_damaged_description_is_one_error(tmp_path, path, value):
    directory = shutil.copytree(PREVIOUS / "data", tmp_path / "data")
    file = directory / METADATA
    fields = inner = json.loads(file.read_text())
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file.write_text(json.dumps(fields))
    with pytest.raises(UserError):
        encode_logs([PREVIOUS / "raw.csv"], directory)
