"""Streams in two processes: the numbers are those of one, whatever each sees and when."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from brokers import MockKafka, json_messages
from main_job import Program, arrays, in_background, losses, run, summary
from stream_job import FLAGS, PROGRAM, SIZES, assert_same, flags, lines, train
from stream_log import log, publish, write_schema

from dlrm_jax.coordinator import free_address
from dlrm_jax.errors import UserError
from dlrm_jax.host_exchange import HostExchange
from dlrm_jax.stream.agreement import Due, Found, Own, Turn, agree
from dlrm_jax.training.journal_entry import read_entry

IN_PROCESS_1 = """
import sys, time
from dlrm_jax.cli.main import main
from dlrm_jax.errors import UserError
from dlrm_jax.stream.folder import Folder
files, read = Folder._files, Folder._read
def late(self):
    return {x: file for x, file in files(self).items() if time.time_ns() - file.changed > 1e9}
def damaged(self, name):
    if name == "s003.parquet":
        raise UserError("only process 1 finds s003 damaged")
    return read(self, name)
if "--process=1" in sys.argv:
    %s
main("train")
"""
# Process 1 sees a segment long after the run would end if process 0 were alone.
LATE = IN_PROCESS_1 % "Folder._files = late"
DAMAGED = IN_PROCESS_1 % "Folder._read = damaged"
IDLE = "--stream_idle_seconds=0.3"
DYNAMIC = ("--dynamic_ids=item=40:parts=4:evict_share=0.1,user=33:parts=2:admit_count=2",)
LARGE = "--mesh=2x4"


@contextlib.contextmanager
def two(code: str, *given: str) -> Iterator[list[Program]]:
    """Starts both processes of a run."""
    shared = (*given, "--processes=2", f"--coordinator={free_address()}")
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(in_background(*shared, f"--process={i}", program=("-c", code)))
            for i in range(2)
        ]


def until(condition: Callable[[], object], *processes: Program) -> None:
    deadline = time.monotonic() + 150
    while not condition():
        for process in processes:
            assert process.returncode is None, process.end().stderr[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def saved(workdir: Path) -> list[int]:
    return sorted(int(x.name) for x in workdir.glob("checkpoints/*") if x.name.isdecimal())


def succeed(process: Program) -> None:
    result = process.end()
    assert result.returncode == 0, result.stderr[-3000:]


class Coming:
    """Segments that come while a run trains."""

    def __init__(self, directory: Path):
        self.directory, self._rows = directory, log(sum(SIZES))
        self._starts = np.cumsum([0, *SIZES]).tolist()
        directory.mkdir()

    def __call__(self, *numbers: int) -> None:
        for i in numbers:
            publish(
                self.directory, f"s{i:03d}.parquet", self._rows.slice(self._starts[i], SIZES[i])
            )


@pytest.mark.thorough  # the next one is harder
def test_a_killed_run_goes_on_to_the_bits_of_one_process(unbroken: Path, tmp_path: Path):
    come, workdir = Coming(tmp_path / "segments"), tmp_path / "run"
    killed_and_resumed(come, workdir)
    assert summary(workdir)["position"] == summary(unbroken)["position"]
    assert_same(workdir, unbroken)


def test_a_killed_run_with_dynamic_ids(segments: Path, tmp_path: Path):
    alone, workdir = tmp_path / "alone", tmp_path / "run"
    train(segments, alone, IDLE, *DYNAMIC)
    killed_and_resumed(Coming(tmp_path / "segments"), workdir, *DYNAMIC)
    assert_same(workdir, alone)
    found, expected = (checksums(x) for x in (workdir, alone))
    assert any(name.startswith("id_maps/") for name in expected)
    assert found == expected


def checksums(workdir: Path) -> dict[str, str]:
    """Those of all arrays of the last checkpoint."""
    path = workdir / "checkpoints" / f"{saved(workdir)[-1]:08d}" / "metadata.json"
    return json.loads(path.read_text())["checksums"]


def killed_and_resumed(come: Coming, workdir: Path, *others: str) -> None:
    """Trains in two processes, one of which sees all segments late, and is killed once."""
    given = flags(come.directory, workdir, IDLE, "--checkpoint_every=4", *others)
    come(0)
    with two(LATE, *given) as processes:
        until(lambda: saved(workdir), *processes)
        come(1)
        assert processes[1].end(signal.SIGKILL).returncode == -signal.SIGKILL
        assert "another process can't be reached" in processes[0].end().stderr
    step = saved(workdir)[-1]
    come(2, 3)
    with two(LATE, *given) as processes:
        until(lambda: saved(workdir)[-1] > step, *processes)
        come(4, 5)
        for process in processes:
            succeed(process)
    assert summary(workdir)["resumed_from"] == step


@pytest.mark.thorough
def test_a_killed_run_with_a_journal(segments: Path, tmp_path: Path):
    alone, workdir = tmp_path / "alone", tmp_path / "run"
    train(segments, alone, IDLE, *DYNAMIC)
    come = Coming(tmp_path / "segments")
    journal = ("--checkpoint_every=1000", "--journal_seconds=0.001", *DYNAMIC)
    given = flags(come.directory, workdir, IDLE, *journal)
    come(0, 1)
    with two(IN_PROCESS_1 % "pass", *given) as processes:
        until(lambda: [*workdir.glob("checkpoints/*.journal/*3")], *processes)
        processes[0].end(signal.SIGKILL)
        processes[1].end()
    entry, _ = read_entry(max(workdir.glob("checkpoints/*.journal/0*")))
    assert saved(workdir)[-1] < entry.step
    come(2, 3, 4, 5)
    with two(IN_PROCESS_1 % "pass", *given) as processes:
        for process in processes:
            succeed(process)
    assert summary(workdir)["resumed_from"] == entry.step
    assert_same(workdir, alone)
    assert checksums(workdir) == checksums(alone)


@pytest.mark.thorough
def test_what_one_process_cannot_read_ends_both(segments: Path, tmp_path: Path):
    with two(DAMAGED, *flags(segments, tmp_path, IDLE, *DYNAMIC)) as processes:
        for process in processes:
            result = process.end()
            assert result.returncode == 2, result.stderr[-3000:]
            *_, last = result.stderr.splitlines()
            assert last == "error: only process 1 finds s003 damaged"
    assert saved(tmp_path) == [sum(SIZES[:3]) // 16]


@pytest.mark.thorough
def test_a_signal_to_one_process_saves_in_both(unbroken: Path, segments: Path, tmp_path: Path):
    given = flags(segments, tmp_path)
    with two(LATE, *given) as processes:
        until(lambda: lines(tmp_path, "train") if (tmp_path / "metrics.jsonl").exists() else 0)
        assert processes[1].end(signal.SIGTERM).returncode == 143
        ended = processes[0].end()
    assert ended.returncode == 143
    assert ended.stderr.startswith("stopped by SIGTERM; everything is saved")
    with two(LATE, *given, IDLE) as processes:
        for process in processes:
            succeed(process)
    assert_same(tmp_path, unbroken)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "others", [(), ("--accumulation_steps=2",), ("--dropout=0.3", "--check_copies_every=7")]
)
def test_eight_devices_of_two_processes(segments: Path, tmp_path: Path, others: tuple[str, ...]):
    alone, both, killed = [tmp_path / x for x in ("alone", "both", "killed")]
    given = (*flags(segments, both, LARGE, IDLE, "--checkpoint_every=4"), *others)
    train_to_the_end(*given, f"--workdir={alone}")
    train_to_the_end(*given, "--processes=2")
    assert_like(both, alone)
    if others or sys.platform != "linux":  # whose processes are in /proc
        return
    given = (*given, f"--workdir={killed}", "--processes=2")
    with in_background(*given, program=PROGRAM) as launcher:
        until(lambda: saved(killed), launcher)
        children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        os.kill(int(children[1]), signal.SIGKILL)
        ended = launcher.end()
    assert ended.returncode == 128 + signal.SIGKILL
    assert "process 1 was killed by SIGKILL; the others were stopped" in ended.stderr
    assert saved(killed)[-1] < sum(SIZES) // 16
    train_to_the_end(*given)
    assert_same(killed, both)


def train_to_the_end(*given: str) -> None:
    result = run(*given, program=PROGRAM)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.mark.thorough
def test_two_processes_on_a_topic_of_four_partitions(tmp_path: Path):
    kafka, rows = MockKafka(), log(160)
    for partition in range(4):
        kafka.send(json_messages(rows[40 * partition :], [5] * 8), partition)
    schema = write_schema(tmp_path / "schema.json")
    named = f"--stream={kafka.url}", f"--schema={schema}", f"--workdir={tmp_path / 'run'}"
    for steps in (4, 0):
        train_to_the_end(
            *FLAGS,
            *named,
            *DYNAMIC,
            "--processes=2",
            f"--steps={steps}",
            "--stream_idle_seconds=15",
        )
    assert summary(tmp_path / "run")["resumed_from"] == 4
    assert summary(tmp_path / "run")["examples"] == 160
    assert summary(tmp_path / "run")["position"]["segment"].endswith(":0=8,1=8,2=8,3=8")


def assert_like(workdir: Path, alone: Path) -> None:
    steps = sum(SIZES) // 16
    found, expected = losses(workdir), losses(alone)
    assert [*found] == [*expected]
    np.testing.assert_allclose([*found.values()], [*expected.values()], atol=1e-6)
    for line, wanted in zip(
        lines(workdir, "prequential"), lines(alone, "prequential"), strict=True
    ):
        assert line == pytest.approx(wanted, abs=1e-6)
    found, expected = arrays(workdir, steps), arrays(alone, steps)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=1e-6, err_msg=name)


class Told(HostExchange):
    """The exchange of a process whose others know this.

    Args:
        index: number of the process.
        others: knowledge of the others, in their order.

    Attributes:
        own: message of this process.
    """

    def __init__(self, index: int, *others: Own):
        self.index, self.count, self._sockets = index, len(others) + 1, {}
        self._others, self.own = others, b""

    def all_to_all(self, messages: Sequence[bytes]) -> list[bytes]:
        assert len(messages) == self.count
        assert len({*messages}) == 1
        self.own = messages[0]
        found = [message_of(own, i + (i >= self.index)) for i, own in enumerate(self._others)]
        found.insert(self.index, self.own)
        return found


def message_of(own: Own, index: int) -> bytes:
    told = Told(index)
    with contextlib.suppress(Exception):
        agree(own, told)
    return told.own


BOTH = Due.CHECKPOINT | Due.JOURNAL


@pytest.mark.parametrize(
    ("others", "found", "missing"),
    [
        ((Found.BATCH, Found.BATCH), Found.BATCH, ()),
        ((Found.BATCH, Found.NOTHING), Found.NOTHING, (2,)),
        ((Found.IDLE, Found.BATCH), Found.NOTHING, (0,)),
        ((Found.IDLE, Found.IDLE), Found.NOTHING, (0, 2)),
    ],
)
def test_a_batch_is_held_until_all_have_it(others, found, missing):
    told = Told(1, *(Own(x, 0, Due(0), 7 * (x == Found.BATCH)) for x in others))
    assert agree(Own(Found.BATCH, 0, BOTH, 7), told) == Turn(found, 0, Due(0), missing)


def test_one_process_agrees_with_itself():
    assert agree(Own(Found.BATCH, 0, BOTH)) == Turn(Found.BATCH, 0, BOTH, ())
    assert agree(Own(Found.NOTHING, 15, BOTH)) == Turn(Found.NOTHING, 15, BOTH, ())


def test_the_run_ends_when_all_are_idle_and_process_0_has_the_clock():
    told = Told(1, Own(Found.IDLE, 0, BOTH))
    assert agree(Own(Found.IDLE, 0, Due(0)), told) == Turn(Found.IDLE, 0, BOTH, ())
    assert agree(Own(Found.NOTHING, 15, Due(0)), told) == Turn(Found.NOTHING, 15, BOTH, ())


def test_other_rows_and_errors_of_others_are_errors():
    with pytest.raises(UserError, match="process 1 has found other rows than process 0"):
        agree(Own(Found.BATCH, 0, Due(0), 6), Told(1, Own(Found.BATCH, 0, Due(0), 5)))
    of_the_first = Own(Found.ERROR, 0, Due(0), error=UserError("of the first, with a café"))
    with pytest.raises(UserError, match="of the first, with a café"):
        agree(Own(Found.BATCH, 0, Due(0), 6), Told(1, of_the_first))
    own = UserError("own")
    with pytest.raises(UserError) as raised:
        agree(Own(Found.ERROR, 0, Due(0), error=own), Told(1, of_the_first))
    assert raised.value is own
    bug = Own(Found.ERROR, 0, Due(0), error=ZeroDivisionError("own"))
    with pytest.raises(ZeroDivisionError):  # with its traceback, while the others say why
        agree(bug)
    expected = r"^stream: process 2 can't read on, and shows where: ZeroDivisionError\('own'\)$"
    with pytest.raises(UserError, match=expected):
        agree(Own(Found.BATCH, 0, Due(0)), Told(0, Own(Found.BATCH, 0, Due(0)), bug))
