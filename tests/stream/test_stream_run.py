"""Runs on a stream: what they leave, and that nothing is lost or doubled when they are killed."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import redis
from brokers import STREAM, json_messages, redis_server
from main_job import in_background, losses, run, summary
from stream_job import FLAGS, PROGRAM, SIZES, assert_same, flags, lines, train
from stream_log import log, publish, write_schema, write_segments


def test_a_run_leaves_windows_and_its_position(unbroken: Path, segments: Path):
    steps = sum(SIZES) // 16
    found = summary(unbroken)
    assert found["steps"] == steps
    assert found["examples"] == 16 * steps
    assert found["position"] == {"segment": "s005.parquet", "row": 213, "ended": True}
    windows = lines(unbroken, "prequential")
    assert [line["step"] for line in windows] == [*range(5, steps + 1, 5)]
    assert all(line["examples"] == 80 for line in windows)
    # The first window is of the model that has learned nothing yet.
    assert windows[0]["log_loss"] > windows[-1]["log_loss"]
    # A batch is predicted by the model before its step, whose loss is of that model, too.
    rows = log(sum(SIZES))
    weights = rows["w"][: 16 * steps].to_numpy().reshape(steps, 16).sum(axis=1)
    before = np.array([*losses(unbroken).values()])
    for line in windows:
        own = slice(line["step"] - 5, line["step"])
        mean = np.average(before[own], weights=weights[own])
        assert line["log_loss"] == pytest.approx(mean, rel=1e-5)
    assert np.isfinite([line["gauc:user"] for line in windows]).all()
    noted = json.loads((unbroken / "checkpoints" / f"{steps:08d}" / "metadata.json").read_text())
    assert [each["name"] for each in noted["stream"]["segments"]] == sorted(
        path.name for path in segments.iterdir()
    )


@pytest.mark.thorough  # test_stream_processes.py has a kill by default, of one of two processes
@pytest.mark.parametrize("kills", [(1,), (1, 3)])
def test_killed_and_resumed_as_segments_come(unbroken: Path, tmp_path: Path, kills: tuple[int]):
    rows = log(sum(SIZES))
    directory, workdir = tmp_path / "segments", tmp_path / "run"
    directory.mkdir()
    starts = np.cumsum([0, *SIZES]).tolist()

    def come(i: int) -> None:
        publish(directory, f"s{i:03d}.parquet", rows.slice(starts[i], SIZES[i]))

    def saved() -> set[str]:
        return {path.name for path in workdir.glob("checkpoints/*") if path.name.isdecimal()}

    come(0)
    others = ("--checkpoint_every=4", "--stream_checkpoint_seconds=0.5")
    for i in kills:  # in the midst of segments, and while it waits
        before = saved()
        with in_background(*flags(directory, workdir, *others), program=PROGRAM) as process:
            deadline = time.monotonic() + 120
            while not saved() - before and process.returncode is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            come(i)
            if i == 3:
                time.sleep(1.5)
            process.end(signal.SIGKILL)
        come(i + 1)
    for i in range(max(kills) + 2, len(SIZES)):
        come(i)
    train(directory, workdir, *others, "--stream_idle_seconds=0.1")
    assert_same(workdir, unbroken)


@pytest.mark.thorough  # test_redis_stream.py has its positions
def test_a_killed_run_on_a_redis_stream_has_the_same_bits(unbroken: Path, tmp_path: Path):
    rows, others = log(sum(SIZES)), ("--checkpoint_every=4", "--stream_idle_seconds=0.1")
    with redis_server(tmp_path) as port, redis.Redis(port=port) as client:
        url, workdir = f"redis://localhost:{port}/{STREAM}", tmp_path / "run"
        schema = write_schema(tmp_path / "schema.json")
        named = (*FLAGS, f"--stream={url}", f"--schema={schema}", f"--workdir={workdir}", *others)
        messages = json_messages(rows, [7] * 110 + [1] * 30)
        assert sum(message.count(b"\n") for message in messages) == sum(SIZES)
        for message in messages[:60]:
            client.xadd(STREAM, {"value": message})
        with in_background(*named[:-1], program=PROGRAM) as process:
            deadline = time.monotonic() + 120
            while not [*workdir.glob("checkpoints/0*")] and process.returncode is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.end(signal.SIGKILL)
        for message in messages[60:]:
            client.xadd(STREAM, {"value": message})
        result = run(*named, program=PROGRAM)
        assert result.returncode == 0, result.stderr[-3000:]
    assert_same(workdir, unbroken)


def test_sigterm_saves_and_the_run_goes_on(unbroken: Path, segments: Path, tmp_path: Path):
    with in_background(*flags(segments, tmp_path), program=PROGRAM) as process:
        deadline = time.monotonic() + 120
        metrics = tmp_path / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        result = process.end(signal.SIGTERM)
    assert result.returncode == 143, result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.glob("checkpoints/*/metadata.json"))
    train(segments, tmp_path, "--stream_idle_seconds=0.1")
    assert_same(tmp_path, unbroken)


def test_a_damaged_segment_ends_the_run_which_goes_on_with_a_whole_one(
    unbroken: Path, tmp_path: Path
):
    directory, workdir = tmp_path / "segments", tmp_path / "run"
    write_segments(directory, SIZES)
    third = directory / "s003.parquet"
    content = third.read_bytes()
    third.write_bytes(content[:-20])
    others = flags(directory, workdir, "--stream_idle_seconds=0.1", "--accumulation_steps=2")
    result = run(*others, program=PROGRAM)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert f"error: cannot read the segment {third}" in result.stderr
    (saved,) = workdir.glob("checkpoints/*/metadata.json")
    assert json.loads(saved.read_text())["stream"]["position"]["segment"] == "s002.parquet"
    third.write_bytes(content)
    assert run(*others, program=PROGRAM).returncode == 0
    assert [x["log_loss"] for x in lines(workdir, "prequential")] == pytest.approx(
        [x["log_loss"] for x in lines(unbroken, "prequential")], abs=1e-5
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--epochs=2",), "--epochs has no effect with --stream: a stream is read once"),
        (("--data=x",), "--data has no effect with --stream"),
        (("--features=a",), "--features has no effect with --stream: the schema decides"),
        (("--processes=2", "--standby"), "--processes: expected 1 with --standby, got 2"),
        (("--eval_only",), "--eval_only has no effect with --stream"),
    ],
)
def test_flags_that_nothing_reads_are_refused(tmp_path: Path, given, message: str):
    result = run(*flags(tmp_path / "none", tmp_path / "run", *given), program=PROGRAM)
    assert result.returncode == 2
    assert message in result.stderr


def test_a_folder_that_isnt_there_leaves_no_workdir(tmp_path: Path):
    result = run(*flags(tmp_path / "none", tmp_path / "run"), program=PROGRAM)
    assert result.returncode == 2
    assert f"expected a directory of segments, there is no {tmp_path}/none" in result.stderr
    assert not (tmp_path / "run").exists()


def test_flags_of_streams_need_one(tmp_path: Path):
    result = run("--stream_window=5", f"--workdir={tmp_path}", program=PROGRAM)
    assert "--stream_window has no effect without --stream" in result.stderr
    result = run("--stream=x", f"--workdir={tmp_path}", program=PROGRAM)
    assert "--schema is missing" in result.stderr
    schema = write_schema(tmp_path / "schema.json")
    result = run("--stream=x", f"--schema={schema}", program=PROGRAM)
    assert "--stream needs --table_rows" in result.stderr


def test_another_schema_is_another_run(unbroken: Path, segments: Path, tmp_path: Path):
    fields = json.loads(write_schema(tmp_path / "x.json").read_text())
    (tmp_path / "schema.json").write_text(json.dumps(fields | {"weight": None}))
    named = f"--stream={segments}", f"--schema={tmp_path}/schema.json", f"--workdir={unbroken}"
    result = run(*FLAGS, *named, program=PROGRAM)
    assert result.returncode == 2
    assert "it was trained on other data" in result.stderr


def test_the_report_shows_the_windows(unbroken: Path):
    result = run("report", f"--run={unbroken}", program=("-m", "dlrm_jax"))
    assert result.returncode == 0, result.stderr[-2000:]
    page = (unbroken / "report.html").read_text()
    assert "last window, predicted before it was trained on" in page
    assert "lines: training loss and prequential metrics by step" in page
    numbers = json.loads((unbroken / "report.json").read_text())
    assert numbers["summary"]["prequential"]["log_loss"] > 0
