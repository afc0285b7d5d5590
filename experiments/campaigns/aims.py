"""Random instants at which a job is killed: at any time, or soon after it has made a file."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from experiments.campaigns import harness, jobs
from experiments.campaigns.bits import bits, differences

Kind = Literal["training", "preparation", "processes", "stream", "journal"]


@dataclasses.dataclass(frozen=True)
class Aim:
    """An instant at which a job is killed.

    Attributes:
        case: name of the instant.
        made: pattern of paths beside the directory that is made; new ones that match are waited
            for. None for at any time.
        most: largest number of new paths that are waited for.
        seconds: longest time from then to the kill; for at any time, in times of an unbroken run.
        least: smallest number of new paths that are waited for.
    """

    case: str
    made: str | None
    most: int
    seconds: float
    least: int = 1


_ANY_TIME = Aim("at any time", None, 1, 1.0)
_AIMS = {
    "training": (
        _ANY_TIME,
        Aim("while a checkpoint is written", "*/checkpoints/.[0-9]*.dlrm_jax", 7, 0.15),
        Aim("when a checkpoint is complete", "*/checkpoints/*[0-9]", 7, 0.05),
        Aim("when the last one is complete", "*/checkpoints/00000040", 1, 0.5),
    ),
    "journal": (
        _ANY_TIME,
        Aim("while an entry is written", "*/checkpoints/*.journal/.0*", 15, 0.005),
        Aim("when an entry is complete", "*/checkpoints/*.journal/0*", 15, 0.02),
        Aim("while a checkpoint is written", "*/checkpoints/.[0-9]*.dlrm_jax", 5, 0.15, least=2),
    ),
    "preparation": (
        _ANY_TIME,
        Aim("while logs are parsed", "*.partial/columns/*/*", 12, 0.05),
        Aim("while vocabularies are made", "*.partial/vocabularies/*", 40, 0.01),
        Aim("while arrays are written", "*.partial/day_*", 12, 0.02),
        Aim("while the output gets its name", "*.partial/metadata.json", 1, 0.02),
    ),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A job to kill.

    Attributes:
        kind: name of its kind.
        job: the job.
        expected: bits of an unbroken run.
        seconds: time of an unbroken run.
    """

    kind: Kind
    job: jobs.Job
    expected: Mapping[str, str]
    seconds: float

    @classmethod
    def prepare(cls, kind: Kind, scratch: Path) -> Target:
        """Makes what a kind of job reads, and runs it without a kill, in a new directory."""
        scratch.mkdir()
        if kind == "preparation":
            job = jobs.preparation(jobs.write_logs(scratch), scratch)
        elif kind == "stream":
            job = jobs.streaming(jobs.write_segments(scratch), scratch)
        elif kind == "journal":
            # Which checkpoint comes before the first entry depends on the time.
            saved = ("--journal_seconds=0.01", "--checkpoint_every=20", "--keep_checkpoints=1")
            job = jobs.training(scratch, "--mesh=1x2", *saved)
        else:
            processes = ["--processes=2"] if kind == "processes" else []
            job = jobs.training(scratch, "--mesh=1x2", *processes)
        return cls(kind, job, *job.unbroken(scratch / "unbroken"))

    @property
    def aims(self) -> Sequence[Aim]:
        """The instants at which it is killed."""
        return _AIMS.get(self.kind, _AIMS["training"])

    def kill(
        self,
        made: Path,
        aim: Aim,
        chance: random.Random,
        variables: Mapping[str, str] | None = None,
        shoot: Callable[[harness.Program], object] = harness.Program.kill,
    ) -> harness.Ended | None:
        """Starts the job and kills it.

        Args:
            made: directory that it makes, alone with what is beside it.
            aim: instant of the kill.
            chance: source of the instant.
            variables: environment variables besides the job's.
            shoot: function that kills the program or a part of it.

        Returns:
            The end of the program; None if it ended before the kill.
        """
        before = _matches(made, aim)
        wanted = chance.randint(aim.least, aim.most)
        delay = chance.uniform(0, aim.seconds) * (1 if aim.made else self.seconds)
        new: set[Path] = set()

        def seen() -> bool:
            new.update(_matches(made, aim) - before)
            return aim.made is None or len(new) >= wanted

        variables = self.job.variables | dict(variables or {})
        with harness.started(self.job.command(made), variables) as program:
            if not (program.wait_for(seen) and program.sleep(delay)):
                return None
            shoot(program)
            return program.end()

    def losses(self, made: Path) -> list[str]:
        """Runs the job to its end; what differs from an unbroken run, none if nothing does."""
        ended = self.job.run(made)
        return self.differences(made) if ended.outcome == "done" else [f"the run after it: {ended}"]

    def differences(self, made: Path) -> list[str]:
        """What differs from an unbroken run, in what it has made or beside it."""
        expected = {f"{made.name}/{name}": value for name, value in self.expected.items()}
        return differences(expected, bits(made.parent))


def _matches(made: Path, aim: Aim) -> set[Path]:
    return set(made.parent.glob(aim.made)) if aim.made else set()
