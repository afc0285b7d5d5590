"""A checkpoint and its journal are the state that was trained, bit for bit; so is what follows."""

from __future__ import annotations

import collections
import dataclasses
import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from main_job import arrays
from stream_log import SCHEMA, write_segments

from dlrm_jax.config import Config
from dlrm_jax.embedding import EmbeddingCollection
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.stream.folder import Folder
from dlrm_jax.stream.position import Consumed
from dlrm_jax.stream.run import StreamOptions, run_stream
from dlrm_jax.stream.settings import fingerprint, for_schema
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.journal import Replay
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.standby import ReadAhead

SIZES = [150, 40, 130]
BATCH = 16
STEPS = sum(SIZES) // BATCH
GIVEN = Config(
    table_rows=(60,),
    embedding_dim=8,
    bottom_mlp=(8,),
    top_mlp=(8, 1),
    batch_size=BATCH,
    log_every=1,
    checkpoint_every=0,
    keep_checkpoints=20,
)
CASES = {
    "hashed": dataclasses.replace(GIVEN, placements=("user=row_wise", "tags=column_wise")),
    "dynamic": dataclasses.replace(
        GIVEN,
        optimizer="adam",
        dynamic_ids=("item=20:evict_share=0.1", "user=15:admit_count=2"),
        frozen_tables=("tags",),
    ),
}


class CutError(Exception):
    """What ends a run at once, as a kill does: nothing is saved."""


def train(case: str, segments: Path, workdir: Path, mesh: str = "1x2", **changes: Any) -> list[str]:
    """Trains with an entry after each step; returns what it said.

    ``cut`` is the segment, by its name, that the run is cut at.
    """
    cut, steps = changes.get("cut"), changes.get("steps", 0)
    given = dataclasses.replace(CASES[case], steps=steps)
    config = for_schema(changes.get("config", given), SCHEMA)
    said: list[str] = []

    class Source(Folder):
        def next(self, after: Any) -> Any:
            found = super().next(after)
            if found is not None and found.note.name == cut:
                raise CutError
            return found

    def opened(consumed: tuple[Consumed, ...]) -> Folder:
        return Source(segments, SCHEMA, consumed)

    options = StreamOptions(
        workdir,
        idle_seconds=0.1,
        checkpoint_seconds=0,
        window=80,
        journal_seconds=changes.get("journal_seconds", 1e-9),
    )
    learner = make_learner(config, make_mesh(mesh))
    try:
        run_stream(config, SCHEMA, opened, learner, options, said.append)
    except CutError:
        said.append("cut")
    return said


def entries(workdir: Path) -> list[Path]:
    return sorted(workdir.glob("checkpoints/*.journal/*"))


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def assert_same(workdir: Path, other: Path, step: int) -> None:
    found, expected = arrays(workdir, step), arrays(other, step)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("journaled") / "segments"
    write_segments(directory, SIZES)
    return directory


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def unbroken(case: str, segments: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp(case)
    train(case, segments, workdir, journal_seconds=0.0)
    return workdir


def test_cut_and_resumed(case: str, segments: Path, unbroken: Path, tmp_path: Path):
    before = train(case, segments, tmp_path, cut="s001.parquet")
    assert before[-1] == "cut"
    count = len(entries(tmp_path))
    assert count > 4
    said = train(case, segments, tmp_path, cut="s002.parquet")
    assert f"resuming from step 1 and its journal to step {1 + count} in" in said[-2]
    assert len(entries(tmp_path)) > count, "the journal goes on"
    train(case, segments, tmp_path)
    assert not list(tmp_path.glob("checkpoints/*.journal")), "the last checkpoint has all"
    assert (tmp_path / "metrics.jsonl").read_text() == (unbroken / "metrics.jsonl").read_text()
    assert_same(tmp_path, unbroken, STEPS)


def test_on_another_mesh_it_is_the_same_state(case: str, segments: Path, tmp_path: Path):
    for name in ("same", "other"):
        train(case, segments, tmp_path / name, cut="s001.parquet")
    step = 1 + len(entries(tmp_path / "same"))
    # Nothing is trained: the state gets a checkpoint of its own.
    train(case, segments, tmp_path / "same", steps=step)
    train(case, segments, tmp_path / "other", mesh="2x4", steps=step)
    assert_same(tmp_path / "other", tmp_path / "same", step)


@pytest.mark.parametrize("damage", ["torn", "lost", "of another chain"])
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


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE])
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


@pytest.mark.parametrize("change", ["none", "torn", "missing", "another"])
def test_a_state_ahead_of_the_journal_is_not_taken(change: str, segments: Path, tmp_path: Path):
    """Entries behind an entry that is no longer there would follow none."""
    train("hashed", segments, tmp_path / "run", cut="s001.parquet")
    config = for_schema(CASES["hashed"], SCHEMA)
    identity = {"data": fingerprint(SCHEMA), **config.identity()}
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", identity, 20)
    ahead = ReadAhead(checkpoints, make_learner(config, make_mesh("1x2")), 0)
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


def test_entries_of_tables_with_other_numbers_of_rows_are_left_out(segments: Path, tmp_path: Path):
    """Rows of ids may be more when a run resumes, and then they are other rows."""
    train("dynamic", segments, tmp_path, cut="s002.parquet")
    ids = ("item=25:evict_share=0.1", "user=15:admit_count=2")
    more = dataclasses.replace(CASES["dynamic"], dynamic_ids=ids)
    said = train("dynamic", segments, tmp_path, config=more)
    [warning] = [x for x in said if x.startswith("warning: the journal of")]
    assert "goes to step 1: entry 1 is of tables with other numbers of rows" in warning
    assert arrays(tmp_path, STEPS)["/item/table"].shape == (25, 8)


def test_rows_that_arent_finite_are_not_written(
    segments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    train("hashed", segments, tmp_path, cut="s001.parquet")
    whole = [path.read_bytes() for path in entries(tmp_path)]
    read = EmbeddingCollection.read_row_state

    def read_infinite(*arguments: Any) -> Any:
        found = read(*arguments)
        for own in found.values():
            own["table"] += np.float32(np.inf)
        return found

    monkeypatch.setattr(EmbeddingCollection, "read_row_state", read_infinite)
    with pytest.raises(UserError, match=r"the rows of table .* aren't finite"):
        train("hashed", segments, tmp_path)
    assert [path.read_bytes() for path in entries(tmp_path)] == whole
