"""Single tries of `published_kills`: a run that publishes, killed, and what must be left of it."""

from __future__ import annotations

import dataclasses
import random
import shutil
import sys
import threading
from pathlib import Path

from dlrm_jax.errors import UserError
from dlrm_jax.publishing.compaction import compact
from dlrm_jax.publishing.published import Published, newest
from dlrm_jax.serving.export import export
from dlrm_jax.serving.trained_model import TrainedModel
from experiments.campaigns import harness, jobs
from experiments.campaigns.aims import Aim
from experiments.campaigns.tally import Tally

_COMPARE = "from experiments.campaigns.publications import print_differences as p; p()"

AIMS = (
    Aim("at any time", None, 1, 1.0),
    Aim("while a delta is written", "models/*.deltas/.0*.dlrm_jax", 6, 0.01),
    Aim("when a delta is complete", "models/*.deltas/0*", 6, 0.01),
    Aim("while a base is written", "models/.[0-9]*.dlrm_jax", 3, 0.3),
    Aim("while a base is compacted", "models/.[0-9]*.dlrm_jax", 4, 0.3, least=2),
    Aim("when a base is complete", "models/[0-9]*", 3, 0.02),
)


@dataclasses.dataclass(frozen=True)
class Target:
    """A run that publishes into ``models`` beside its workdir.

    Attributes:
        home: directory of its caches.
        seconds: time of an unbroken run.
    """

    home: Path
    seconds: float

    @classmethod
    def prepare(cls, scratch: Path) -> Target:
        """Runs it without a kill, twice: everything is compiled in the second run."""
        for name in ("first", "unbroken"):
            (scratch / name).mkdir()
            ended = cls(scratch, 0).job(scratch / name).run(scratch / name / "run")
            if ended.outcome != "done":
                raise RuntimeError(f"{ended}\n{ended.stderr}")
        return cls(scratch, ended.seconds)

    def job(self, directory: Path) -> jobs.Job:
        """The run; a state is published whenever the one before is written."""
        models = f"--publish={directory / 'models'}"
        often = ("--publish_every_seconds=0", "--steps=120", "--checkpoint_every=15")
        return jobs.training(self.home, "--mesh=1x2", models, *often)

    def kill(self, directory: Path, aim: Aim, chance: random.Random) -> bool:
        """Kills it; false if it has ended before."""
        job, before = self.job(directory), _seen(directory, aim)
        wanted, delay = chance.randint(aim.least, aim.most), chance.uniform(0, aim.seconds)
        new: set[Path] = set()

        def seen() -> bool:
            new.update(_seen(directory, aim) - before)
            return aim.made is None or len(new) >= wanted

        with harness.started(job.command(directory / "run"), job.variables) as program:
            delay *= 1 if aim.made else self.seconds
            if not (program.wait_for(seen) and program.sleep(delay)):
                return False
            program.kill()
            program.end()
        return True

    def losses(self, directory: Path) -> list[str]:
        """Runs it to its end; what is wrong then."""
        ended = self.job(directory).run(directory / "run")
        if ended.outcome != "done":
            return [f"the run after it: {ended}"]
        # A process like that of the run: programs name the frames that they were traced in, and
        # sums depend on the settings of XLA.
        compared = harness.run(["-c", _COMPARE, f"{directory}"], self.job(directory).variables)
        if compared.outcome != "done":
            return [f"the comparison: {compared}"]
        return compared.stdout.split("\n")[:-1]


def print_differences() -> None:
    """Prints the names of files that differ between what is published and a full export.

    The first argument of the program is the directory of both.
    """
    directory = Path(sys.argv[1])
    published = newest(directory / "models")
    assert published
    count, found = len(list(published.chain.rest())), published.directory
    if count:
        made: list[Published] = []
        compact(published, count, threading.Lock(), made.append)
        found = made[0].directory
    checkpoint = max((directory / "run" / "checkpoints").glob("0*"))
    export(TrainedModel.read(checkpoint), directory / "expected", "run", "float32")
    own, expected = _files(found), _files(directory / "expected")
    for name in sorted({*own, *expected}):
        if own.get(name) != expected.get(name):
            print(name)


def last_published(directory: Path) -> int:
    """The step of the newest state that is published, of which all is read; -1 if there is none.

    Raises:
        UserError: it can't be read.
    """
    if not (directory / "models").exists() or (found := newest(directory / "models")) is None:
        return -1
    for _ in found.chain.rest():
        pass
    return found.chain.step


def try_published(tally: Tally, target: Target, number: int, directory: Path) -> None:
    """Kills, the run that ends, the comparison; without a loss no files are left."""
    chance = tally.chance("published", number)
    aim, losses, step = AIMS[number % len(AIMS)], [], -1
    directory.mkdir()
    for _ in range(1 + (chance.random() < 1 / 3)):
        target.kill(directory, aim, chance)
        try:
            now = last_published(directory)
        except UserError as error:
            losses.append(f"after the kill: {error}")
            break
        if now < step:
            losses.append(f"step {now} is published after step {step}")
        step = now
    losses += target.losses(directory)
    tally.count(aim.case, losses)
    if not losses:
        shutil.rmtree(directory)


def _seen(directory: Path, aim: Aim) -> set[Path]:
    return set(directory.glob(aim.made)) if aim.made else set()


def _files(directory: Path) -> dict[str, bytes]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}
