"""The tries of a campaign: how many, for how long, how many survived, and what was lost."""

from __future__ import annotations

import dataclasses
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.output_files import check_writable
from dlrm_jax.files import write_json
from dlrm_jax.text_table import text_table
from dlrm_jax.training.record import versions


def define_tries(count: int, minutes: float, what: str = "of each kind") -> None:
    """``--count``, ``--minutes``, ``--seed`` and ``--output``."""
    flags.DEFINE_integer("count", count, f"Tries {what}; such as 5.", 1)
    flags.DEFINE_float("minutes", minutes, "Minutes after which no other try begins; such as 3.", 0)
    flags.DEFINE_integer("seed", 0, "Seed of what is tried; such as 1.")
    flags.DEFINE_string("output", None, "File for the figures, as JSON; such as kills.json.")


@dataclasses.dataclass
class Case:
    """The tries of one kind.

    Attributes:
        tried: number of tries.
        lost: a line for each try after which something was lost.
    """

    tried: int = 0
    lost: list[str] = dataclasses.field(default_factory=list)


class Tally:
    """The tries so far, by case.

    Args:
        name: name of the campaign.
        seed: seed of what is tried.
        minutes: minutes after which no other try begins.
    """

    def __init__(self, name: str, seed: int, minutes: float):
        self.name = name
        self.seed = seed
        self._minutes = minutes
        self._begun = time.monotonic()
        self._cases: dict[str, Case] = {}

    def rounds(self, count: int) -> Iterator[int]:
        """The numbers of rounds in which each kind is tried; fewer than ``count`` if time is up.

        What was prepared before doesn't count.
        """
        self._begun = time.monotonic()
        for number in range(count):
            if self.has_time():
                yield number

    def has_time(self) -> bool:
        """Whether another try may begin."""
        return time.monotonic() < self._begun + 60 * self._minutes

    def chance(self, kind: str, number: int) -> random.Random:
        """The random generator of one try, so that it can be repeated alone."""
        return random.Random(f"{self.seed} {kind} {number}")

    def count(self, case: str, losses: list[str]) -> None:
        """Counts a try, with a line for each thing that was lost."""
        found = self._cases.setdefault(case, Case())
        found.tried += 1
        if losses:
            found.lost.append("; ".join(losses))
            print(f"{self.name}, {case}: {found.lost[-1]}", file=sys.stderr, flush=True)

    @property
    def lost(self) -> int:
        """The number of tries after which something was lost."""
        return sum(len(case.lost) for case in self._cases.values())

    @property
    def tried(self) -> int:
        """The number of tries."""
        return sum(case.tried for case in self._cases.values())

    def table(self) -> str:
        """A line for each case, and one for all."""
        counts = [(name, case.tried, len(case.lost)) for name, case in self._cases.items()]
        rows = [*counts, ("all", self.tried, self.lost)]
        return text_table(
            (self.name, "tried", "survived", "lost"),
            [(name, f"{tried}", f"{tried - lost}", f"{lost}") for name, tried, lost in rows],
        )

    def finish(self, output: Path | None) -> None:
        """Prints the table, writes the figures, and ends the program with 1 if anything was lost.

        No try at all is an error, too: it shows nothing.
        """
        seconds = time.monotonic() - self._begun
        print(f"{self.table()}\nin {seconds / 60:.1f} minutes, seed {self.seed}")
        if output:
            cases = {name: dataclasses.asdict(case) for name, case in self._cases.items()}
            machine = {"system": platform.platform(), "cores": os.cpu_count()}
            figures = {"campaign": self.name, "seed": self.seed, "minutes": seconds / 60}
            write_json(output, figures | {"cases": cases, **machine, "versions": versions()})
        if self.lost or not self.tried:
            sys.exit(1)


class Scratch:
    """A directory for the tries, which stays if something was lost or failed; a context manager."""

    def __init__(self, tally: Tally):
        self._tally = tally
        self._path = Path(tempfile.mkdtemp(prefix=f"{tally.name}-"))

    def __enter__(self) -> Path:
        return self._path

    def __exit__(self, error: object, *_: object) -> None:
        if self._tally.lost or error:
            print(f"the files of what was lost: {self._path}", file=sys.stderr)
        else:
            shutil.rmtree(self._path)


def chosen_output() -> Path | None:
    """The file of ``--output``.

    Raises:
        UserError: it can't be written, which is to be known before hours of tries.
    """
    check_writable("output")
    return Path(FLAGS.output) if FLAGS.output else None
