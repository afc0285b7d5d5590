"""Two folders joined into one, on a log whose delays are planted: each row with its label, once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
from main_job import run
from stream_log import publish

from dlrm_jax.errors import UserError
from dlrm_jax.stream import joined_folder as module
from dlrm_jax.stream.joined_folder import JoinedFolder, joined_folder
from dlrm_jax.stream.late_labels import LateLabels

WAIT = LateLabels("id", "t", "click", seconds=100)
CORRECT = dataclasses.replace(WAIT, way="correct")
N = 900


class Folders(NamedTuple):
    rows: Path
    events: Path
    output: Path


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    made = Folders(tmp_path / "rows", tmp_path / "events", tmp_path / "out")
    made.rows.mkdir()
    made.events.mkdir()
    return made


def planted() -> tuple[pl.DataFrame, pl.DataFrame, dict[int, int]]:
    """Rows, one a second, events of 3 in 10 of them after 50 seconds on average, and the labels."""
    rng = np.random.default_rng(0)
    times, clicked = 1000.0 + np.arange(N), rng.random(N) < 0.3
    delays = np.where(clicked, rng.exponential(50, N), np.inf)
    rows = pl.DataFrame({"id": np.arange(N), "t": times, "x": times % 7})
    events = rows.select("id").with_columns(t=times + delays).filter(pl.Series(clicked)).sort("t")
    return rows, events, {i: int(delay <= 100) for i, delay in enumerate(delays)}


def come(folders: Folders, part: int) -> None:
    """A segment of rows, and one of the events of the same 75 seconds."""
    for directory, frame in zip(folders, planted()[:2], strict=False):
        own = frame.filter((pl.col("t") - 1000) // 75 == part)
        publish(directory, f"s{part:03d}.parquet", own)


def left(folders: Folders) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(x) for x in sorted(folders.output.glob("*.parquet"))])


@pytest.mark.parametrize("is_late", [False, True], ids=["as they come", "all at once"])
@pytest.mark.parametrize("settings", [WAIT, CORRECT], ids=["wait", "correct"])
def test_labels_are_those_that_were_planted(
    settings: LateLabels, is_late: bool, folders: Folders, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_MANY", 100)  # a step takes two segments of rows
    parts = N // 75 + 2
    if is_late:
        for part in range(parts):
            come(folders, part)
    held = -1
    for part in range(parts):  # each time as another program
        if not is_late:
            come(folders, part)
        with joined_folder(settings, *folders) as joined:
            while step := joined.step():
                held = step.held
    *_, labels = planted()
    found = left(folders)
    last = found["t"].max()
    if settings is WAIT:
        assert found["id"].to_list() == list(range(N - held)), "in their order, each once"
        assert last == 1000 + N - 1 - held
        assert held == 100
        assert found["click"].to_list() == [labels[i] for i in range(N - held)]
    else:
        negative, positive = (found.filter(pl.col("click") == y)["id"] for y in (0, 1))
        assert negative.to_list() == list(range(N))
        assert sorted(positive.to_list()) == [i for i in range(N) if labels[i]]
    assert found.columns == ["id", "t", "x", "click"]
    names = sorted(x.name for x in folders.output.iterdir())
    assert names[0] == ".join"
    assert len(list((folders.output / ".join").glob("0*"))) == 1, "of earlier states none is left"


@pytest.mark.parametrize("place", ["_save", "_publish"])
def test_a_program_that_is_killed_loses_and_doubles_nothing(
    place: str, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for part in range(6):
        come(folders, part)
    whole = folders._replace(output=tmp_path / "whole")
    monkeypatch.setattr(module, "_MANY", 1)
    with joined_folder(WAIT, *whole) as joined:
        while joined.step():
            pass
    write, calls = getattr(JoinedFolder, place), 0

    def killed(*given: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        write(*given)

    monkeypatch.setattr(JoinedFolder, place, killed)
    with pytest.raises(KeyboardInterrupt), joined_folder(WAIT, *folders) as joined:  # noqa: PT012
        while joined.step():
            pass
    with joined_folder(WAIT, *folders) as joined:
        while joined.step():
            pass
    assert left(folders).equals(left(whole))
    files = [[x.name for x in sorted(y.output.glob("*.parquet"))] for y in (folders, whole)]
    assert files[0] == files[1]


@pytest.mark.parametrize("at", [5e6, 4e9], ids=["past", "future"])
@pytest.mark.parametrize("kind", ["rows", "events"])
def test_a_clock_that_is_ahead_changes_no_other_label(kind: str, at: float, folders: Folders):
    said: list[str] = []
    held = -1
    for part in range(N // 75 + 2):
        come(folders, part)
        if part in (2, 5):
            path = getattr(folders, kind) / f"s{part:03d}.parquet"
            frame = pl.read_parquet(path)
            own = frame[:1].with_columns(id=pl.lit(-part, pl.Int64), t=pl.lit(at))
            many = frame if kind == "rows" and at > 2e9 else pl.concat([frame] * 3)
            ids = pl.int_range(len(many)) + 10_000 * part
            many = many.with_columns(
                id=pl.when(pl.int_range(len(many)) < len(frame)).then("id").otherwise(ids)
            )
            path.unlink()
            publish(path.parent, path.name, pl.concat([many, own]))
        with joined_folder(WAIT, *folders, say=said.append) as joined:
            while step := joined.step():
                held = step.held
    labels = planted()[-1]
    found = dict(left(folders).filter(pl.col("id").is_between(0, N)).select("id", "click").rows())
    assert found == {i: labels[i] for i in range(N - 100)}
    assert held == 100 + 2 * (kind == "rows")
    if kind == "rows" or at > 2e9:
        assert len(said) == 2
        assert said[0].startswith(
            f"warning: {kind} of {folders._asdict()[kind]}/s002.parquet: 1 of"
        )


@pytest.mark.parametrize("many", [100, 1 << 16])
def test_rows_and_corrections_of_a_backlog_leave_in_the_order_of_time(
    many: int, folders: Folders, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_MANY", many)
    for part in range(N // 75 + 2):
        come(folders, part)
    with joined_folder(CORRECT, *folders) as joined:
        while joined.step():
            pass
    _, events, labels = planted()
    clicked = dict(events.select("id", "t").rows())
    rows = left(folders).select("id", "t", "click").rows()
    assert sum(label for *_, label in rows) == sum(labels.values())
    times = [clicked[i] if label else t for i, t, label in rows]
    assert times == sorted(times)


def test_events_are_read_ahead_up_to_a_number(folders: Folders, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_MANY", 60)
    said: list[str] = []
    rows, events, labels = planted()
    publish(folders.rows, "s000.parquet", rows[:75])
    for part in range(12):
        publish(folders.events, f"s{part:03d}.parquet", events[part * 20 : (part + 1) * 20])
    with joined_folder(WAIT, *folders, say=said.append) as joined:
        while joined.step():
            pass
        assert joined._held.events is not None
        assert 60 <= len(joined._held.events) < 120
        assert [x.partition(" are held; those from 1970")[1] != "" for x in said] == [True]
    publish(folders.rows, "s001.parquet", rows[75:700])
    with joined_folder(WAIT, *folders) as joined:
        while joined.step():
            pass
    assert left(folders)["click"].to_list() == [labels[i] for i in range(600)]


@pytest.mark.parametrize("name", ["rows.arrow", "events.arrow", "leaving.parquet"])
def test_damage_of_what_is_held_is_an_error(
    name: str, folders: Folders, monkeypatch: pytest.MonkeyPatch
):
    for part in range(3):
        come(folders, part)
    monkeypatch.setattr(JoinedFolder, "_publish", lambda _: None)  # killed before
    with joined_folder(WAIT, *folders) as joined:
        assert joined.step()
    monkeypatch.undo()
    (path,) = (folders.output / ".join").glob(f"0*/{name}")
    whole = path.read_bytes()
    place = len(whole) // 2
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
    with pytest.raises(UserError, match=rf"{name} is damaged: expected the checksum \w+, its"):
        joined_folder(WAIT, *folders).__enter__()
    path.write_bytes(whole)
    with joined_folder(WAIT, *folders) as joined:
        assert joined.held == 100
    with joined_folder(WAIT, *folders) as joined:  # what has left isn't missed
        assert len(left(folders)) == 125


def test_a_state_without_checksums_is_read(folders: Folders):
    come(folders, 0)
    with joined_folder(WAIT, *folders) as joined:
        joined.step()
    (path,) = (folders.output / ".join").glob("0*/state.json")
    fields = json.loads(path.read_text(encoding="utf-8"))
    assert sorted(fields.pop("checksums")) == ["events.arrow", "rows.arrow"]
    path.write_text(json.dumps(fields), encoding="utf-8")
    with joined_folder(WAIT, *folders) as joined:
        assert joined.held == 75


def test_a_missing_column_is_told_with_those_of_the_file(folders: Folders):
    come(folders, 0)
    frame = pl.DataFrame({"id": [1], "when": [1.0], "page": [3]})
    publish(folders.events, "s001.parquet", frame)
    message = r"events of \S+/s001.parquet have no column 't'; their columns are id, when, page"
    with joined_folder(WAIT, *folders) as joined, pytest.raises(UserError, match=message):
        joined.step()


def test_what_is_refused(folders: Folders, tmp_path: Path):
    with pytest.raises(UserError, match="events: expected a directory of segments, there is no"):
        joined_folder(WAIT, folders.rows, tmp_path / "none", folders.output).__enter__()
    for output in (folders.rows, folders.events / "x", tmp_path):
        with pytest.raises(UserError, match="output: expected three directories"):
            joined_folder(WAIT, folders.rows, folders.events, output).__enter__()
    folders.output.mkdir()
    (folders.output / "notes").touch()
    with pytest.raises(UserError, match=r"output: expected a new directory, .* has other files"):
        joined_folder(WAIT, *folders).__enter__()
    (folders.output / "notes").unlink()
    come(folders, 0)
    with joined_folder(WAIT, *folders) as joined:
        assert joined.step() == module.Step("", 0, 0, 75)
        with pytest.raises(UserError, match="is in use by another run"):
            joined_folder(WAIT, *folders).__enter__()
    with pytest.raises(UserError, match=r"way: expected 'wait', with which .* got 'corr"):
        joined_folder(CORRECT, *folders).__enter__()
    (state,) = (folders.output / ".join").glob("0*/state.json")
    state.write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot read .*; begin anew with another output"):
        joined_folder(WAIT, *folders).__enter__()


def test_command(folders: Folders):
    for part in range(4):
        come(folders, part)
    flags = [f"--{name}={x}" for name, x in folders._asdict().items()]
    flags += ["--id=id", "--timestamp=t", "--label=click", "--idle_seconds=0.1"]
    ended = run(*flags, program=("-m", "dlrm_jax", "join"))
    assert ended.returncode == 2
    assert "--seconds is missing" in ended.stderr
    ended = run(*flags, "--seconds=100", program=("-m", "dlrm_jax", "join"))
    assert ended.returncode == 0, ended.stderr
    positive = int(left(folders)["click"].sum())
    assert positive > 20
    warning = (
        f"warning: since {folders.output} was begun, 2 events found no row: they came after it had "
        f"left, or are later than it by more than --seconds, or have another id. See that the ids "
        f"are those of rows; make segments shorter or --seconds longer"
    )
    assert ended.stdout.splitlines() == [
        f"000000000001.parquet: 200 rows, {positive} with label 1",
        f"200 rows, {positive} with label 1, in {folders.output}; 100 are held for what comes "
        f"later",
        warning,
    ]
    ended = run(*flags, "--seconds=100", program=("-m", "dlrm_jax", "join"))
    last = f"0 rows, 0 with label 1, in {folders.output}; 100 are held for what comes later"
    assert ended.stdout.splitlines() == [last, warning]
