"""Journals with entries that are damaged, gone, or can't be read just now."""

from __future__ import annotations

import collections
import errno
import json
from pathlib import Path
from typing import Any

import pytest
from journaled_job import CASES, SIZES, STEPS, assert_same, entries, names_in, train
from shared_learners import shared_learner
from stream_log import SCHEMA, write_segments

from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.stream.settings import fingerprint, for_schema
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.replay import Replay
from dlrm_jax.training.standby import ReadAhead


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("journaled") / "segments"
    write_segments(directory, SIZES)
    return directory


@pytest.mark.parametrize(
    "damage",
    [*(pytest.param(x, marks=pytest.mark.thorough) for x in ("torn", "lost")), "of another chain"],
)
def test_it_ends_at_the_last_whole_entry(damage: str, segments: Path, tmp_path: Path):
    train("hashed", segments, tmp_path / "run", cut="s002.parquet")
    third, last = entries(tmp_path / "run")[2], entries(tmp_path / "run")[-1]
    names = names_in(third.parent)
    if damage == "torn":
        last.write_bytes(last.read_bytes()[:-100])
        line = f"goes to step {int(last.name)}: entry {int(last.name)} is damaged: its bytes"
    elif damage == "lost":
        third.unlink()
        line = "goes to step 3: entry 3 is missing, and there are later ones"
    else:
        train("hashed", segments, tmp_path / "other", cut="s002.parquet")
        third.write_bytes(entries(tmp_path / "other")[2].read_bytes())
        line = "goes to step 3: entry 3 doesn't follow the one before"
    said = train("hashed", segments, tmp_path / "run", cut="s003.parquet")
    [warning] = [x for x in said if x.startswith("warning: the journal of")]
    assert line in warning
    [aside] = tmp_path.glob("run/checkpoints/*.journal.damaged")
    first = {"torn": last.name, "lost": "000004", "of another chain": third.name}[damage]
    assert names_in(aside) == [x for x in names if x >= first], "nothing is deleted"
    train("hashed", segments, tmp_path / "unbroken", journal_seconds=0.0)
    assert_same(tmp_path / "run", tmp_path / "unbroken", STEPS)


@pytest.mark.thorough
def test_rows_that_only_damaged_entries_had_are_asked_for(tmp_path: Path):
    sizes = [32] * 6
    write_segments(tmp_path / "segments", sizes)
    train("hashed", tmp_path / "segments", tmp_path / "run", cut="s005.parquet")
    third, gone = entries(tmp_path / "run")[2], tmp_path / "segments" / "s002.parquet"
    third.write_bytes(third.read_bytes()[:-1])
    gone.rename(tmp_path / "s002.parquet")
    for _ in range(2):  # the second start finds no damage in the journal itself
        with pytest.raises(UserError, match=r"segments are gone .*, 1 from s002.parquet to s002"):
            train("hashed", tmp_path / "segments", tmp_path / "run")
    (tmp_path / "s002.parquet").rename(gone)
    train("hashed", tmp_path / "segments", tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["examples"] == sum(sizes)


def test_damaged_entries_that_do_not_say_what_they_had_read(segments: Path, tmp_path: Path):
    train("hashed", segments, tmp_path, cut="s002.parquet")
    last = entries(tmp_path)[-1]
    last.write_bytes(last.read_bytes()[:-1])
    said = train("hashed", segments, tmp_path, cut="s002.parquet")
    [warning] = [x for x in said if "doesn't say which segments" in x]
    assert "journal.damaged" in warning
    assert "its rows are lost" in warning


@pytest.mark.parametrize(
    "number",
    [
        errno.EIO,
        *(pytest.param(x, marks=pytest.mark.thorough) for x in (errno.EACCES, errno.EMFILE)),
    ],
)
def test_an_entry_that_cannot_be_read_now_is_no_damage(
    number: int, segments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train("hashed", segments, tmp_path, cut="s001.parquet")
    there, read = entries(tmp_path), Path.read_bytes

    def fail(path: Path) -> bytes:
        if path == there[2]:
            raise OSError(number, "not now", str(path))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        with pytest.raises(UserError, match=r"cannot read the journal .*000003: .*not now"):
            train("hashed", segments, tmp_path)
    assert entries(tmp_path) == there
    said = train("hashed", segments, tmp_path, cut="s001.parquet")
    assert not [x for x in said if x.startswith("warning")]


def test_a_replay_traces_the_model_once_and_lists_the_directory_once(
    segments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train("hashed", segments, tmp_path, cut="s001.parquet")
    learner = make_learner(for_schema(CASES["hashed"], SCHEMA), make_mesh("1x2"))
    state = learner.init(0)
    calls: collections.Counter[str] = collections.Counter()
    specs, listed = Learner.state_specs, Path.iterdir

    def traced(self: Learner) -> TrainState:
        calls["traced"] += 1
        return specs(self)

    def counted(path: Path) -> Any:
        calls["listed"] += path.suffix == ".journal"
        return listed(path)

    monkeypatch.setattr(Learner, "state_specs", traced)
    monkeypatch.setattr(Path, "iterdir", counted)
    replay = Replay(tmp_path / "checkpoints" / "00000001")
    replay.read_on(learner, state, None)
    assert replay.number == len(entries(tmp_path))
    assert calls == {"traced": 1, "listed": 1}


@pytest.mark.parametrize(
    "change",
    [
        "none",
        *(pytest.param(x, marks=pytest.mark.thorough) for x in ("torn", "missing")),
        "another",
    ],
)
def test_a_state_ahead_of_the_journal_is_not_taken(change: str, segments: Path, tmp_path: Path):
    """Entries behind an entry that is no longer there would follow none."""
    train("hashed", segments, tmp_path / "run", cut="s001.parquet")
    config = for_schema(CASES["hashed"], SCHEMA)
    identity = {"data": fingerprint(SCHEMA), **config.identity()}
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", identity, 20)
    ahead = ReadAhead(checkpoints, shared_learner(config, "1x2"), 0)
    ahead.look()
    last, other = entries(tmp_path / "run")[-1], entries(tmp_path / "run")[-2]
    assert ahead.step == 1 + int(last.name)
    if change == "torn":
        last.write_bytes(last.read_bytes()[:-1])
    elif change == "missing":
        last.unlink()
    elif change == "another":
        last.write_bytes(other.read_bytes())
    ahead.look()
    taken = ahead.take(checkpoints.directory / "00000001", None)
    assert (taken is not None) == (change == "none")


def test_a_standby_reads_all_again_after_an_entry_could_not_be_read(
    segments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train("hashed", segments, tmp_path, cut="s001.parquet")
    config = for_schema(CASES["hashed"], SCHEMA)
    identity = {"data": fingerprint(SCHEMA), **config.identity()}
    checkpoints = Checkpoints(tmp_path / "checkpoints", identity, 20)
    ahead = ReadAhead(checkpoints, shared_learner(config, "1x2"), 0)
    there, read = entries(tmp_path), Path.read_bytes

    def fail(path: Path) -> bytes:
        if path == there[2]:
            raise OSError(errno.EIO, "not now", str(path))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        ahead.look()
    assert ahead.step is None
    ahead.look()
    assert ahead.step == 1 + len(there)
