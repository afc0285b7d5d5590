"""Predictions of users' logs: keys, metrics, files larger than memory."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest

from dlrm_jax.cli import flags as cli_flags
from dlrm_jax.data.metadata import METADATA
from dlrm_jax.data.preprocessing import sources
from dlrm_jax.errors import UserError
from dlrm_jax.inference import frame_file
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.mesh import make_mesh
from dlrm_jax.training.metrics import METRICS, binary_metrics

PREVIOUS = Path(__file__).parents[1] / "previous"
RUN = PREVIOUS / "run_of_format_3"
PREDICT = pytest.mark.parametrize("program", ["dlrm_jax.cli.predict"], indirect=True)


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    """Texts, with a key that looks like a missing value and one that would be another number."""
    frame = pl.read_csv(PREVIOUS / "raw.csv", infer_schema=False)
    country = pl.Series("country", ["NA", "", "a,b", "007"] * len(frame))[: len(frame)]
    return frame.with_columns(country)


def predict(program: ModuleType, data: Path | str, output: Path, *flags: str) -> None:
    checkpoint = RUN / "checkpoints" / "00000006"
    given = (f"--data={data}", f"--output={output}", "--batch_size=256") if data else ()
    cli_flags.parse(["predict", f"--checkpoint={checkpoint}", *given, *flags])
    program.__dict__["start"] = make_mesh  # without another cache of compiled programs
    program.main()


@PREDICT
def test_keys_metrics_and_chunks(
    program: ModuleType,
    log: pl.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """Chunks of 50 rows, each of which is a file in the meantime; no other files are made."""
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(log.write_csv().encode()))
    lines = (tmp_path / "p.csv", "--keys=country,page")
    made: list[str] = []

    def scan(paths: list[Path], glob: bool) -> pl.LazyFrame:
        made.extend(path.name for path in paths[0].parent.iterdir())
        return scan_parquet(paths, glob=glob)

    scan_parquet = pl.scan_parquet
    monkeypatch.setattr(frame_file.pl, "scan_parquet", scan)
    monkeypatch.setattr(frame_file, "_BYTES", 1)
    monkeypatch.setattr(sources, "CHUNK_ROWS", 50)
    predict(program, tmp_path / "log.csv.gz", *lines)
    assert sorted(made) == [f"{i}.parquet" for i in range(5)]
    found = pl.read_csv(tmp_path / "p.csv", schema_overrides={"country": pl.String})
    assert found.columns == ["country", "page", "probability"]
    assert found["country"].to_list() == log["country"].replace("", None).to_list()
    assert found["page"].to_list() == log["page"].to_list()
    # The same program for as many rows at a time: equal to the last bit.
    model = Predictor.load(RUN, batch_size=256)
    expected = model.predict(PREVIOUS / "raw.csv")
    np.testing.assert_array_equal(found["probability"].to_numpy(), expected)

    labels = log["click"].cast(pl.Float64).to_numpy()
    metrics = binary_metrics(np.log(expected / (1 - expected)), labels)
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2].split() == list(METRICS)
    assert printed[-1].split() == [f"{metrics[x]:.5f}" for x in METRICS]


@PREDICT
def test_labels_of_some_rows_and_files_of_two_kinds(
    program: ModuleType, log: pl.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    first = log[:100].with_columns(click=pl.lit("3"), id=pl.lit(7, pl.Int32))
    second = log[100:].with_columns(id=pl.lit(2**40))
    for name, part in (("a", first.drop("day")), ("b", second), ("c", second.drop("click"))):
        part.write_parquet(tmp_path / f"{name}.parquet")
    names = ",".join(str(tmp_path / f"{name}.parquet") for name in "abc")
    predict(program, names, tmp_path / "p.parquet", "--keys=id")
    found = pl.read_parquet(tmp_path / "p.parquet")
    assert found["id"].to_list() == [7] * 100 + [2**40] * 220
    assert found["probability"][100:210].equals(found["probability"][210:])
    assert "metrics of 110 rows: the others have no label of 0 or 1\n" in capsys.readouterr().out


REFUSED = {
    "keys: {bad} has no column 'user'; its columns are click, day, age": ("{bad}", "user"),
    "--keys: 'page' is given twice": ("{bad}", "page,page"),
    "keys: '^p$' is a pattern to Polars": ("{bad}", "^p$"),
    "--keys: 'probability' is the name of the predictions": ("{bad}", "probability"),
    "--keys has no effect with a directory": (str(PREVIOUS / "data"), "page"),
    "--keys has no effect without --data": ("", "page"),
    "--keys: CSV has no List(Int64), the type of column seen": ("{lists}", "seen"),
    "keys: column seen is List(Int64) in {lists}, but String in {texts}": (
        "{lists},{texts}", "seen"),
    "{none} has no column 'word' that the schema names": ("{bad},{none}", "page"),
}  # fmt: skip


@PREDICT
@pytest.mark.parametrize("message", REFUSED)
def test_refused_before_rows_are_read(
    program: ModuleType, log: pl.DataFrame, tmp_path: Path, message: str
):
    places = {name: tmp_path / f"{name}.parquet" for name in ("lists", "texts", "none")}
    places["bad"] = tmp_path / "bad.csv"
    places["bad"].write_text(log.write_csv() + "too,few\n")
    log.with_columns(seen=pl.lit([1])).write_parquet(places["lists"])
    log.with_columns(seen=pl.lit("x")).write_parquet(places["texts"])
    log.drop("word").write_parquet(places["none"])
    data, keys = (text.format(**places) for text in REFUSED[message])
    given = () if data else ("--tables=C1", f"--tables_output={tmp_path / 't'}")
    with pytest.raises(UserError) as error:
        predict(program, data, tmp_path / "p.csv", f"--keys={keys}", *given)
    assert message.format(**places) in str(error.value)
    assert not list(tmp_path.glob("p.csv*"))


@PREDICT
def test_arrays_in_another_order_than_their_log_are_refused(program: ModuleType, tmp_path: Path):
    data = shutil.copytree(PREVIOUS / "data", tmp_path / "data")
    described = json.loads((data / METADATA).read_text())
    described["made_from"]["options"]["split"] = "user=page:0.1,0.1"
    (data / METADATA).write_text(json.dumps(described))
    with pytest.raises(UserError, match=r"=page:0\.1,0\.1 was given; give the raw log"):
        predict(program, data, tmp_path / "p.csv")
