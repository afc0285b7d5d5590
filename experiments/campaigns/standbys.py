"""A run on a stream that a standby waits beside, and what a try to end it leaves."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.campaigns import harness, jobs
from experiments.campaigns.bits import bits, differences
from experiments.campaigns.tally import Tally

_BEFORE = 2  # segments that are there from the start
_PAUSE = 0.15  # seconds between others, at most


@dataclasses.dataclass(frozen=True)
class Case:
    """How the run is ended, and what it saves.

    Attributes:
        name: name of the case.
        number: signal that ends it.
        flags: flags besides the job's.
    """

    name: str
    number: signal.Signals
    flags: tuple[str, ...] = ()


# Which checkpoint comes before the last one depends on the time.
_JOURNAL = (
    "--checkpoint_every=0",
    "--stream_checkpoint_seconds=60",
    "--journal_seconds=0.05",
    "--keep_checkpoints=1",
)
CASES = (
    Case("SIGKILL, checkpoints", signal.SIGKILL),
    Case("SIGKILL, journal", signal.SIGKILL, _JOURNAL),
    Case("SIGTERM, checkpoints", signal.SIGTERM),
    Case("SIGTERM, journal", signal.SIGTERM, _JOURNAL),
)


@dataclasses.dataclass(frozen=True)
class Target:
    """The segments of a stream, and what a run on them leaves.

    Attributes:
        segments: folder of all segments, beside their schema.
        home: directory of caches.
        expected: bits of unbroken runs, by the flags of a case.
    """

    segments: Path
    home: Path
    expected: Mapping[tuple[str, ...], Mapping[str, str]]

    @classmethod
    def prepare(cls, scratch: Path, cases: Sequence[Case] = CASES) -> Target:
        """Writes the segments, and runs on them without a kill."""
        segments = jobs.write_segments(scratch)
        expected = {}
        for number, flags in enumerate({case.flags: None for case in cases}):
            job = jobs.streaming(segments, scratch, *flags)
            expected[flags] = job.unbroken(scratch / f"unbroken-{number}")[0]
        return cls(segments, scratch, expected)

    def losses(self, directory: Path, case: Case, chance: random.Random) -> list[str]:
        """Ends a run that a standby waits beside; what is wrong in the end."""
        folder, workdir = directory / "segments", directory / "run"
        folder.mkdir(parents=True)
        os.link(self.segments.parent / "schema.json", directory / "schema.json")
        job = jobs.streaming(folder, self.home, *case.flags)
        coming = sorted(self.segments.iterdir())
        command = job.command(workdir)
        with contextlib.ExitStack() as stack:

            def started(*flags: str) -> harness.Program:
                return stack.enter_context(harness.started([*command, *flags], job.variables))

            for path in coming[:_BEFORE]:
                os.link(path, folder / path.name)
            trainer = started("--stream_idle_seconds=300")
            if not trainer.wait_for((workdir / "metrics.jsonl").exists):
                return [f"the run: {trainer.end()}"]
            standby = started("--stream_idle_seconds=3", "--standby")
            if not standby.wait_for(lambda: "standing by for" in standby.printed()):
                return [f"the standby: {standby.end()}"]
            instant, twice = chance.randrange(_BEFORE, len(coming)), chance.random() < 1 / 3
            for number, path in enumerate(coming):
                if number >= _BEFORE:
                    os.link(path, folder / path.name)
                    standby.sleep(chance.uniform(0, _PAUSE))
                if number == instant:
                    os.kill(trainer.pid, case.number)
            ended = trainer.end()
            if ended.code != (-case.number if case.number == signal.SIGKILL else 143):
                return [f"the run that was ended: {ended}"]
            if twice:
                standby.wait_for(lambda: "taking over" in standby.printed())
                standby.sleep(chance.uniform(0, 0.5))
                standby.kill()
                standby.end()
                last = job.run(workdir)
            else:
                last = standby.end()
        if last.outcome != "done":
            return [f"the run after it: {last}"]
        return differences(self.expected[case.flags], bits(workdir))


def try_standby(tally: Tally, target: Target, number: int, directory: Path) -> None:
    """A kill, the standby that goes on, the comparison; without a loss no files are left."""
    case = CASES[number % len(CASES)]
    losses = target.losses(directory, case, tally.chance("standby", number))
    tally.count(case.name, losses)
    if not losses:
        shutil.rmtree(directory)
