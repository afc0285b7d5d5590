"""From raw lines to probabilities and vectors by command lines alone."""

from __future__ import annotations

import math
import shutil
import signal
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
from main_job import SMALL, arrays, fails, in_background, run, succeed, summary
from oracle import Oracle, OracleLookup, OracleTable

PREDICT, PREPARE = ("-m", "dlrm_jax", "predict"), ("-m", "dlrm_jax", "preprocess")
MODEL = ("--mesh=1x2", "--embedding_dim=4", "--bottom_mlp=4", "--top_mlp=4,1", "--batch_size=64",
         "--evaluation_batch_size=64", "--learning_rate=0.2", "--steps=5")  # fmt: skip
LINES = 700  # seven days of a hundred, the last one of test and validation in halves
DENSE, TABLES = 13, [f"C{i + 1}" for i in range(26)]


class Run(NamedTuple):
    raw: Path
    data: Path
    workdir: Path
    checkpoint: Path


def line(rng: np.random.Generator, values: int) -> str:
    integers = ["" if n == 0 else str(n - 3) for n in rng.integers(0, 50, DENSE)]
    hashes = ["" if c == 0 else f"{c * 0x1234567:08x}" for c in rng.integers(0, values, 26)]
    label = str(int(hashes[0] < hashes[1]))
    return "\t".join([label, *integers, *hashes])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A model of lines, the last of which hold values that the others don't."""
    directory = tmp_path_factory.mktemp("trained")
    raw, data, workdir = (directory / name for name in ("raw.txt", "data", "run"))
    rng = np.random.default_rng(0)
    lines = [line(rng, 6 if i < LINES * 6 // 7 else 9) for i in range(LINES)]
    raw.write_text("".join(f"{text}\n" for text in lines))
    prepared = run(f"--input={raw}", f"--output={data}", program=PREPARE)
    assert prepared.returncode == 0, prepared.stderr[-2000:]
    succeed(*MODEL, f"--data={data}", f"--workdir={workdir}")
    return Run(raw, data, workdir, workdir / "checkpoints" / "00000005")


def predict(checkpoint: Path, *flags: str) -> str:
    result = run(f"--checkpoint={checkpoint}", *flags, program=PREDICT)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def probabilities(
    checkpoint: Path, output: Path, data: str | Path, *flags: str
) -> tuple[np.ndarray, str]:
    printed = predict(checkpoint, f"--data={data}", f"--output={output}", *flags)
    frame = pl.read_csv(output) if output.suffix == ".csv" else pl.read_parquet(output)
    assert frame.columns == ["probability"]
    assert list(output.parent.glob(f"*{output.name}*")) == [output]
    return frame["probability"].to_numpy(), printed


def labels(raw: Path) -> np.ndarray:
    return np.array([int(text[0]) for text in raw.read_text().splitlines()])


def log_loss(p: np.ndarray, y: np.ndarray) -> float:
    return float(-np.mean(np.where(y == 1, np.log(p), np.log(1 - p))))


@pytest.fixture(scope="module")
def of_raw_lines(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    output = tmp_path_factory.mktemp("raw") / "raw.parquet"
    found, printed = probabilities(trained.checkpoint, output, trained.raw, "--batch_size=64")
    assert f"{LINES} rows, " in printed
    assert f"see {output}" in printed
    return found


def test_the_main_jobs_metrics(trained: Run, of_raw_lines: np.ndarray):
    assert of_raw_lines.shape == (LINES,)
    assert np.ptp(of_raw_lines) > 0.01, "nothing to compare"
    y = labels(trained.raw)
    for split, rows in (("test", slice(600, 650)), ("validation", slice(650, 700))):
        found = log_loss(of_raw_lines[rows], y[rows])
        assert found == pytest.approx(summary(trained.workdir)[split]["log_loss"], abs=1e-5)


def test_prepared_arrays(trained: Run, of_raw_lines: np.ndarray, tmp_path: Path):
    output = tmp_path / "prepared.csv"
    found, _ = probabilities(
        trained.checkpoint, output, trained.data, "--mesh=2x4", "--batch_size=128"
    )
    np.testing.assert_allclose(found, of_raw_lines, rtol=1e-5)
    assert output.read_text().startswith("probability\n0.")
    # Without a description nothing says what the ids are of; they are checked one by one.
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in trained.data.glob("day_*.npy"):
        shutil.copy(path, bare)
    shutil.copy(bare / "day_6_dense.npy", bare / "day_old_dense.npy")  # no day
    bare_output = tmp_path / "bare.parquet"
    found, _ = probabilities(trained.checkpoint, bare_output, bare, "--batch_size=64")
    np.testing.assert_allclose(found, of_raw_lines, rtol=1e-5)
    ids = np.load(bare / "day_3_sparse.npy")
    ids[7, 2] = 1000
    np.save(bare / "day_3_sparse.npy", ids)
    bad = (f"--data={bare}", f"--output={tmp_path / 'bad.csv'}")
    refused(trained.checkpoint, "row 307 (from 0), categorical feature C3:", *bad)
    assert not (tmp_path / "bad.csv").exists()


def test_arrays_that_the_description_does_not_name(
    trained: Run, of_raw_lines: np.ndarray, tmp_path: Path
):
    data = shutil.copytree(trained.data, tmp_path / "data")
    for name in ("dense", "labels", "sparse"):
        shutil.copy(data / f"day_6_{name}.npy", data / f"day_7_{name}.npy")
    found, _ = probabilities(trained.checkpoint, tmp_path / "p.parquet", data, "--batch_size=64")
    np.testing.assert_allclose(found, of_raw_lines, rtol=1e-5)


def test_the_run_alone_is_enough(trained: Run, of_raw_lines: np.ndarray, tmp_path: Path):
    """Elsewhere, without the data it was trained on; raw lines in two files, without labels."""
    workdir = shutil.copytree(trained.workdir, tmp_path / "copy")
    lines = [text.partition("\t")[2] for text in trained.raw.read_text().splitlines()]
    for name, part in (("a", lines[:450]), ("b", lines[450:])):
        (tmp_path / name).write_text("".join(f"{text}\n" for text in part))
    found, printed = probabilities(
        workdir / "checkpoints" / "00000005",
        tmp_path / "out" / "p.parquet",
        f"{tmp_path / 'a'},{tmp_path / 'b'}",
    )
    assert "no metrics: the data have no labels" in printed
    np.testing.assert_allclose(found, of_raw_lines, rtol=1e-5)


def test_an_independent_forward_pass(trained: Run, of_raw_lines: np.ndarray, tmp_path: Path):
    """Of the dumped tables, the values beside them and the raw lines; in plain Python."""
    output = tmp_path / "tables"
    flags = (f"--tables={','.join(TABLES)}", f"--tables_output={output}", "--tables_format=npy")
    printed = predict(trained.checkpoint, *flags)
    assert f"{output / 'C26.npy'}" in printed
    fields = [text.split("\t") for text in trained.raw.read_text().splitlines()[::7]]
    dense = [[math.log(max(int(x or 0), 0) + 1) for x in row[1 : 1 + DENSE]] for row in fields]
    ids = {}
    for i, table in enumerate(TABLES):
        values = pl.read_parquet(output / f"{table}.values.parquet").drop_nulls()
        id_of = dict(values.select("value", "id").iter_rows())
        column = [row[1 + DENSE + i] for row in fields]
        ids[table] = [[id_of.get(int(text, 16), 0) if text else 1] for text in column]
    params = {k.removeprefix("/params/"): v for k, v in arrays(trained.workdir, 5).items()}

    def layers(mlp: str, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        names = [f"{mlp}/layers/{i}" for i in range(count)]
        return [(params[f"{name}/kernel"].T, params[f"{name}/bias"]) for name in names]

    oracle = Oracle(
        [OracleTable(table, np.load(output / f"{table}.npy")) for table in TABLES],
        [OracleLookup(table, table, table) for table in TABLES],
        layers("bottom", 1),
        layers("top", 2),
    )
    logits = oracle.forward(np.array(dense), ids)
    np.testing.assert_allclose(of_raw_lines[::7], 1 / (1 + np.exp(-logits)), rtol=1e-5)


def test_tables_beside_probabilities(trained: Run, tmp_path: Path):
    tables = ("--tables=C2,C1", f"--tables_output={tmp_path / 't'}")
    probabilities(trained.checkpoint, tmp_path / "p.csv", trained.raw, *tables)
    assert {path.name for path in (tmp_path / "t").iterdir()} == {"C1.parquet", "C2.parquet"}
    frame = pl.read_parquet(tmp_path / "t" / "C2.parquet")
    assert frame.columns == ["value", "meaning", "id", "vector"]
    assert frame["meaning"].to_list()[:3] == ["unseen", "missing", "value"]
    np.testing.assert_array_equal(
        frame["vector"].to_numpy(), arrays(trained.workdir, 5)["/C2/table"]
    )


def test_tables_of_generated_data_have_no_values(unbroken: Path, tmp_path: Path):
    checkpoint = unbroken / "checkpoints" / "00000040"
    assert "--table_rows=7,3000,40,500" in SMALL
    printed = predict(checkpoint, "--tables=C3", f"--tables_output={tmp_path / 't'}")
    assert "the run keeps no vocabularies" in printed
    frame = pl.read_parquet(tmp_path / "t" / "C3.parquet")
    assert frame.columns == ["id", "vector"]
    assert len(frame) == 40
    raw = tmp_path / "raw.txt"
    raw.write_text(line(np.random.default_rng(0), 6) + "\n")
    flags = (f"--data={raw}", f"--output={tmp_path / 'p.csv'}")
    refused(checkpoint, "raw logs can't be mapped to ids", *flags)


def refused(checkpoint: Path, fragment: str, *flags: str) -> None:
    result = run(f"--checkpoint={checkpoint}", *flags, program=PREDICT)
    assert result.returncode == 2, result.stderr[-2000:]
    message = result.stderr.strip()
    assert message.startswith("error: ")
    assert "\n" not in message, "one message, no traceback"
    assert fragment in message


def test_other_data(trained: Run, tmp_path: Path):
    other = tmp_path / "other"
    prepared = run(f"--input={trained.raw}", "--min_count=90", f"--output={other}", program=PREPARE)
    assert prepared.returncode == 0, prepared.stderr[-2000:]
    output = f"--output={tmp_path / 'p.csv'}"
    refused(trained.checkpoint, "Give raw logs", f"--data={other}", output)
    raw = (f"--data={trained.raw}", f"--preprocessing={other}")
    refused(trained.checkpoint, f"{other} isn't the data", *raw, output)
    assert {path.name for path in tmp_path.iterdir() if "lock" not in path.name} == {"other"}


REPLACED_MEANWHILE = """
import os
from pathlib import Path
from dlrm_jax.cli import predict
from dlrm_jax.cli.main import main
data, other, name = Path(os.environ["DATA"]), Path(os.environ["OTHER"]), os.environ["NAME"]
def replaced(*args, read=getattr(predict, name)):
    data.rename(data.with_name("before"))
    other.rename(data)
    return read(*args)
setattr(predict, name, replaced)
main("predict")
"""


@pytest.mark.parametrize("name", ["check_headers", "load_directory", "read_values"])
def test_data_that_are_replaced_meanwhile(trained: Run, tmp_path: Path, name: str):
    data, other = tmp_path / "data", tmp_path / "other"
    shutil.copytree(trained.data, data)
    prepared = run(f"--input={trained.raw}", "--min_count=90", f"--output={other}", program=PREPARE)
    assert prepared.returncode == 0, prepared.stderr[-2000:]
    flags = {
        "check_headers": (f"--data={trained.raw}", f"--preprocessing={data}"),
        "load_directory": (f"--data={data}",),
        "read_values": (f"--preprocessing={data}", "--tables=C1"),
    }
    output = f"--{'tables_' if name == 'read_values' else ''}output={tmp_path / 'p.csv'}"
    result = run(f"--checkpoint={trained.checkpoint}", *flags[name], output,
                 program=("-c", REPLACED_MEANWHILE), DATA=str(data), OTHER=str(other),
                 NAME=name)  # fmt: skip
    assert result.returncode == 2, result.stderr[-2000:]
    found = "isn't the data" if name == "check_headers" else "was replaced by other data meanwhile"
    assert f"error: {data} {found}" in result.stderr
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.thorough
def test_a_model_grows_with_its_data(trained: Run, tmp_path: Path):
    """New lines hold new values: these get rows behind those of the trained table."""
    raw, data, workdir = (tmp_path / name for name in ("raw.txt", "data", "run"))
    rng = np.random.default_rng(1)
    raw.write_text("".join(f"{line(rng, 12)}\n" for _ in range(LINES)))
    flags = (*MODEL, "--learning_rate=1e-30", "--steps=1", f"--workdir={workdir}",
             f"--warm_start={trained.checkpoint}", "--warm_start_names=C2,bottom")  # fmt: skip
    fails("--grow=OLD_DIRECTORY", *flags, f"--data={raw}")

    grow = f"--grow={trained.workdir / 'preprocessing'}"
    prepared = run(f"--input={raw}", f"--output={data}", grow, program=PREPARE)
    assert prepared.returncode == 0, prepared.stderr[-2000:]
    succeed(*flags, f"--data={data}")
    old, new = arrays(trained.workdir, 5)["/C2/table"], arrays(workdir, 1)["/C2/table"]
    assert len(new) > len(old)
    np.testing.assert_array_equal(new[: len(old)], old)
    kept = [pl.read_parquet(x / "preprocessing/vocabularies/1.parquet").select("value", "id")
            for x in (trained.workdir, workdir)]  # fmt: skip
    assert kept[1].head(len(kept[0])).equals(kept[0])
    assert len(new) == kept[1]["id"].to_list()[-1] + 1
    # The raw lines of before have the same ids.
    probabilities(workdir / "checkpoints" / "00000001", tmp_path / "p.csv", trained.raw)


ERRORS = {
    "--output: expected a name in .parquet or .csv": ("--data={raw}", "--output={new}.txt"),
    "exists; remove it": ("--data={raw}", "--output={there}"),
    "--output is missing": ("--data={raw}",),
    "--data is missing": (),
    "--mesh has no effect without --data": ("--mesh=1x1", "--tables=C1", "--tables_output={new}"),
    "expected raw files or one directory": ("--data={raw},{data}", "--output={new}.csv"),
    "--preprocessing has no effect with a directory": (
        "--data={data}", "--output={new}.csv", "--preprocessing={data}"),
    "no table or column is named 'C27'": ("--tables=C1,C27", "--tables_output={new}"),
    "--batch_size: 100 samples": (
        "--mesh=2x4", "--batch_size=100", "--data={raw}", "--output={new}.csv"),
}  # fmt: skip


@pytest.mark.parametrize("fragment", ERRORS)
def test_errors(trained: Run, fragment: str, tmp_path: Path):
    there = tmp_path / "there.csv"
    there.touch()
    places = {**trained._asdict(), "new": tmp_path / "new", "there": there}
    flags = [flag.format(**places) for flag in ERRORS[fragment]]
    refused(trained.checkpoint, fragment.format(**places), *flags)
    assert list(tmp_path.iterdir()) == [there]


def test_what_is_no_checkpoint(trained: Run, tmp_path: Path):
    flags = (f"--data={trained.raw}", f"--output={tmp_path / 'p.csv'}")
    refused(tmp_path / "none", f"{tmp_path / 'none'} is not a checkpoint", *flags)
    refused(tmp_path, f"{tmp_path} is not a checkpoint", *flags)


def test_a_class_that_only_the_checkpoint_names(trained: Run, tmp_path: Path):
    copy = shutil.copytree(trained.checkpoint, tmp_path / "00000005")
    path = copy / "metadata.json"
    path.write_text(path.read_text().replace('"model": "dlrm"', '"model": "not_ours:Mine"'))
    flags = (f"--data={trained.data}", f"--output={tmp_path / 'p.csv'}")
    refused(copy, "(--model=not_ours:Mine)", *flags)
    refused(copy, "can't import 'not_ours:Mine'", "--model=not_ours:Mine", *flags)


def test_bad_lines_leave_nothing(trained: Run, tmp_path: Path):
    raw = tmp_path / "raw.txt"
    raw.write_text(trained.raw.read_text() + "1\tx\n")
    refused(trained.checkpoint, "line 701", f"--data={raw}", f"--output={tmp_path / 'p.csv'}")
    assert list(tmp_path.iterdir()) == [raw]


def test_told_to_end_it_leaves_nothing(trained: Run, tmp_path: Path):
    flags = [f"--checkpoint={trained.checkpoint}", f"--data={trained.raw}",
             f"--output={tmp_path / 'p.csv'}"]  # fmt: skip
    with in_background(*flags, program=PREDICT) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.01)
        result = process.end(signal.SIGTERM)
    assert result.returncode == 143
    assert result.stderr.splitlines()[-1] == "stopped by SIGTERM"
    assert list(tmp_path.iterdir()) == []
