"""Tables of a checkpoint as files: every vector beside the values that it is of."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from named_arrays import arrays_of
from saved_run import CONFIG, learner_on, train_and_save

from dlrm_jax.errors import UserError
from dlrm_jax.inference import table_files
from dlrm_jax.inference.table_files import Format, write_table
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.warm_start import warm_start

Run = tuple[Path, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Run:
    learner, state, checkpoint = train_and_save(tmp_path_factory.mktemp("run"), "2x4")
    return checkpoint, arrays_of(learner, state)


def written(
    saved: Run, table: str, values: pl.DataFrame | None, directory: Path, kind: Format
) -> list[str]:
    checkpoint, _ = saved
    paths = write_table(checkpoint, read_metadata(checkpoint), table, values, directory, kind)
    assert sorted(paths) == sorted(directory.iterdir())
    return [path.name for path in paths]


def vocabulary(*pairs: tuple[str, int]) -> pl.DataFrame:
    values, ids = zip(*pairs, strict=True)
    frame = pl.DataFrame({"value": values, "id": np.array(ids, np.int32)})
    return frame.select("value", pl.lit("value").alias("meaning"), "id")


# Rows 0 and 1 are of unseen and missing values; two values share the last row.
SHARED = vocabulary(("a", 2), ("b", 3), ("c", 4), ("d", 5), ("e", 6), ("f", 6))
WITHOUT_SPECIAL = vocabulary(*zip("abcdefg", range(7), strict=True))
# In the order of their frequency, rare ones sharing a row, as ids of TorchRec's lie.
UNSORTED = vocabulary(("a", 2), ("b", 1), ("c", 6), ("d", 1), ("e", 3))


@pytest.mark.parametrize("rows_per_frame", [3, 100])
@pytest.mark.parametrize(
    "values", [SHARED, WITHOUT_SPECIAL, UNSORTED], ids=["shared", "without-special", "unsorted"]
)
def test_parquet(
    saved: Run,
    values: pl.DataFrame,
    rows_per_frame: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(table_files, "_ROWS_PER_FRAME", rows_per_frame)
    assert written(saved, "C1", values, tmp_path, "parquet") == ["C1.parquet"]
    found = pl.read_parquet(tmp_path / "C1.parquet")
    assert found.schema == {
        "value": pl.String, "meaning": pl.String, "id": pl.Int32, "vector": pl.Array(pl.Float32, 8)
    }  # fmt: skip
    weights, of_value = saved[1]["C1/table"], dict(values.select("value", "id").iter_rows())
    named = {i: [(v, i) for v, own in of_value.items() if own == i] for i in range(7)}
    lines = [line for i in range(7) for line in named[i] or [(None, i)]]
    assert list(found.select("value", "id").iter_rows()) == lines
    for value, meaning, row, vector in found.iter_rows():
        assert meaning == ("unused" if value is None else "value")
        assert of_value.get(value, row) == row
        np.testing.assert_array_equal(np.array(vector, np.float32), weights[row])


def test_npy_is_what_a_warm_start_reads(saved: Run, tmp_path: Path):
    assert written(saved, "C1", SHARED, tmp_path, "npy") == ["C1.npy", "C1.values.parquet"]
    values = pl.read_parquet(tmp_path / "C1.values.parquet")
    assert values.columns == ["value", "meaning", "id"]
    assert values["value"].to_list() == [None, None, *"abcdef"]
    assert values["id"].to_list() == [0, 1, 2, 3, 4, 5, 6, 6]
    learner = learner_on("1x1")
    found = arrays_of(learner, warm_start(learner, 7, tmp_path, ["C1"]))
    np.testing.assert_array_equal(found["C1/table"], saved[1]["C1/table"])


def test_without_values(saved: Run, tmp_path: Path):
    kinds: tuple[Format, Format] = ("npy", "parquet")
    for kind in kinds:
        directory = tmp_path / kind
        directory.mkdir()
        assert written(saved, "C2", None, directory, kind) == [f"C2.{kind}"]
    found = pl.read_parquet(tmp_path / "parquet" / "C2.parquet")
    assert found.columns == ["id", "vector"]
    assert found["id"].to_list() == list(range(3000))
    np.testing.assert_array_equal(found["vector"].to_numpy(), saved[1]["C2/table"])
    np.testing.assert_array_equal(np.load(tmp_path / "npy" / "C2.npy"), saved[1]["C2/table"])


@pytest.mark.thorough
def test_bfloat16_becomes_float32(tmp_path: Path):
    config = dataclasses.replace(CONFIG, table_dtype="bfloat16")
    learner, state, checkpoint = train_and_save(tmp_path, "1x1", config)
    (tmp_path / "out").mkdir()
    write_table(checkpoint, read_metadata(checkpoint), "C3", None, tmp_path / "out", "npy")
    found = np.load(tmp_path / "out" / "C3.npy")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, arrays_of(learner, state)["C3/table"].astype(np.float32))


def test_what_does_not_fit(saved: Run, tmp_path: Path):
    with pytest.raises(UserError, match=r"ids from 2 to 7, the table has 7 rows"):
        written(saved, "C1", vocabulary(("a", 2), ("b", 7)), tmp_path, "parquet")
    with pytest.raises(UserError, match="no table 'C9'"):
        written(saved, "C9", None, tmp_path, "npy")
    assert list(tmp_path.iterdir()) == []
