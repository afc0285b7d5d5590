"""Two programs on the same files, of which the second starts at a random time of the first."""

from __future__ import annotations

import functools
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from experiments.campaigns import harness, jobs
from experiments.campaigns.aims import Target


class Scene:
    """Jobs that are alone once, when they are first asked for.

    Args:
        scratch: directory for all files.
    """

    def __init__(self, scratch: Path):
        self.scratch = scratch

    @functools.cached_property
    def logs(self) -> Sequence[Path]:
        """Files of logs of the same form."""
        return jobs.write_logs(self.scratch)

    @functools.cached_property
    def run(self) -> Target:
        """A training run on generated examples."""
        return self._alone(jobs.training(self.scratch), "run")

    @functools.cached_property
    def made(self) -> Target:
        """A preparation of the logs."""
        return self._alone(jobs.preparation(self.logs, self.scratch), "made")

    @functools.cached_property
    def rare(self) -> Target:
        """A preparation of the logs with another option."""
        return self._alone(jobs.preparation(self.logs, self.scratch, "--min_count=5"), "rare")

    @functools.cached_property
    def reader(self) -> Target:
        """A training run on what `made` has made."""
        assert self.made
        data = self.scratch / "made" / "unbroken"
        return self._alone(jobs.training(self.scratch, data=data), "reader")

    @property
    def log(self) -> Path:
        """The file that `from_logs` reads."""
        return self.scratch / "log"

    @functools.cached_property
    def from_logs(self) -> Sequence[Target]:
        """Training runs on two contents of one file."""
        return [self._from_log(number) for number in (0, 1)]

    def _from_log(self, number: int) -> Target:
        shutil.copy2(self.logs[number], self.log)  # with its time, which is noted
        return self._alone(jobs.training(self.scratch, data=self.log), f"log-{number}")

    def _alone(self, job: jobs.Job, name: str) -> Target:
        directory = self.scratch / name
        directory.mkdir()
        kind = "training" if job.flag == "--workdir" else "preparation"
        return Target(kind, job, *job.unbroken(directory / "unbroken"))


def together(
    first: Sequence[str],
    second: Sequence[str],
    variables: Mapping[str, str],
    delay: float,
    between: Callable[[], object] = lambda: None,
) -> tuple[harness.Ended, harness.Ended]:
    """The ends of two programs.

    Args:
        first: arguments of Python for the first.
        second: arguments of Python for the second.
        variables: environment variables of both.
        delay: seconds from the start of the first to that of the second.
        between: function that is called before the second is started.
    """
    with harness.started(first, variables) as one:
        one.sleep(delay)
        between()
        with harness.started(second, variables) as other:
            while one.is_running() or other.is_running():
                one.sleep(0.01)
                other.sleep(0.01)
            return one.end(), other.end()


def two_runs(scene: Scene, directory: Path, chance: random.Random) -> list[str]:
    """Two runs in one workdir: one is told unless it comes after the other's end."""
    made = directory / "made"
    command, delay = scene.run.job.command(made), chance.uniform(0, scene.run.seconds)
    ends = together(command, command, scene.run.job.variables, delay)
    told = [end for end in ends if end.outcome == "error" and "in use by another run" in str(end)]
    wrong = [f"{end}" for end in ends if end.outcome != "done" and end not in told]
    if len(told) == 2:
        wrong.append("both were told that there is another")
    return wrong + scene.run.differences(made)


def two_preparations(scene: Scene, directory: Path, chance: random.Random) -> list[str]:
    """Two preparations of one output: one waits for the other."""
    made = directory / "made"
    command, delay = scene.made.job.command(made), chance.uniform(0, scene.made.seconds)
    ends = together(command, command, scene.made.job.variables, delay)
    return [f"{end}" for end in ends if end.outcome != "done"] + scene.made.differences(made)


def two_options(scene: Scene, directory: Path, chance: random.Random) -> list[str]:
    """Two preparations of one output with different options: one is told, the other's stays."""
    made = directory / "made"
    targets = [scene.made, scene.rare]
    chance.shuffle(targets)
    first, second = (target.job.command(made) for target in targets)
    delay = chance.uniform(0, targets[0].seconds)
    ends = together(first, second, scene.made.job.variables, delay)
    for end, other, target in zip(ends, reversed(ends), targets, strict=True):
        told = other.outcome == "error" and "doesn't match this command" in str(other)
        if end.outcome == "done" and told:
            return target.differences(made)
    return [f"{end}" for end in ends]


def reader_of_unfinished(scene: Scene, directory: Path, chance: random.Random) -> list[str]:
    """A run that reads an output that is being made: it is told unless the output is complete."""
    made, workdir = directory / "made", directory / "reader" / "run"
    reader = jobs.training(scene.scratch, data=made).command(workdir)
    delay = chance.uniform(0, 1.5 * scene.made.seconds)
    ends = together(scene.made.job.command(made), reader, scene.made.job.variables, delay)
    losses = [] if ends[0].outcome == "done" else [f"the writer: {ends[0]}"]
    if ends[1].outcome == "done":
        losses += scene.reader.differences(workdir)
    elif ends[1].outcome != "error":
        losses += [f"the reader: {ends[1]}"]
    shutil.rmtree(workdir.parent, ignore_errors=True)
    return losses + scene.made.differences(made)


def replaced_logs(scene: Scene, directory: Path, chance: random.Random) -> list[str]:
    """A run on logs that are replaced meanwhile, and another run that replaces the arrays of them.

    The first one ends in the bits of either logs, or is told that they have changed.
    """
    workdirs = [directory / name / "run" for name in ("first", "second")]
    job = jobs.training(scene.scratch, data=scene.log)
    delay = chance.uniform(0, scene.from_logs[0].seconds)
    shutil.copy2(scene.logs[0], scene.log)

    def replace() -> None:
        new = scene.log.with_name("log.new")
        shutil.copy2(scene.logs[1], new)
        new.replace(scene.log)

    first, second = map(job.command, workdirs)
    ends = together(first, second, job.variables, delay, replace)
    losses = [] if ends[0].outcome in ("done", "error") else [f"the first: {ends[0]}"]
    if ends[0].outcome == "done":
        either = [target.differences(workdirs[0]) for target in scene.from_logs]
        losses += min(either, key=len)
    if ends[1].outcome != "done":
        return [*losses, f"the second: {ends[1]}"]
    return losses + scene.from_logs[1].differences(workdirs[1])


CASES: dict[str, Callable[[Scene, Path, random.Random], list[str]]] = {
    "two runs in one workdir": two_runs,
    "two preparations of one output": two_preparations,
    "… with different options": two_options,
    "a run reads an unfinished output": reader_of_unfinished,
    "a run reads logs that are replaced": replaced_logs,
}
