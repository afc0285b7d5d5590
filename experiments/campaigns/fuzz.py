"""Gives changed inputs and random command lines to programs: they work, or say what is wrong.

    python -m experiments.campaigns.fuzz --count=1000 --minutes=600
    python -m experiments.campaigns.fuzz --formats=CSV,Parquet --count=100

Files of every format are changed at random and given to a command that reads them. Each must end
with exit code 0, or with 2 and one error line: no traceback, within a minute and 2 GiB. After an
error nothing may have the name of the output. Equal failures, by exception and line of our code,
are counted once. A failing case stays in a directory with its ``command``.
"""

from __future__ import annotations

import random
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from absl import flags

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from dlrm_jax.errors import UserError
from dlrm_jax.text_table import text_table
from experiments.campaigns import forks
from experiments.campaigns.command_lines import CommandLines
from experiments.campaigns.failures import MOST_BYTES, failure_of
from experiments.campaigns.good import Good
from experiments.campaigns.harness import Ended
from experiments.campaigns.inputs import FORMATS, LOADED
from experiments.campaigns.tally import Scratch, Tally, chosen_output, define_tries

Writer = Callable[[Path, random.Random], list[str]]
"""A function that writes what a command reads to a directory, and returns the command."""

_COMMAND_LINES = "command lines"
_SECONDS = 60.0  # limit of a program

define_tries(1000, 600, "of each format")
flags.DEFINE_list("formats", [], "Formats that are tried, instead of all; such as CSV,Parquet.")


class Findings(Tally):
    """A tally that tells inputs that are refused from those that are accepted."""

    def __init__(self, name: str, seed: int, minutes: float):
        super().__init__(name, seed, minutes)
        self._refused: Counter[str] = Counter()
        self._accepted: Counter[str] = Counter()
        self._failures: set[str] = set()

    def add(self, case: str, ended: Ended, output: Path) -> bool:
        """Counts a try; whether it is a failure unlike all others so far."""
        failure = failure_of(ended, output)
        refused = ended.outcome == "error" and LOADED not in ended.errors[0]
        if not failure:
            (self._refused if refused else self._accepted)[case] += 1
        new = bool(failure) and failure not in self._failures
        self._failures.add(failure)
        self.count(case, [failure] if new else [])
        return new

    def table(self) -> str:
        """A line for each format, and one for all."""
        counts = {
            name: np.array([each.tried, self._refused[name], self._accepted[name], len(each.lost)])
            for name, each in self._cases.items()
        }
        counts["all"] = np.sum(list(counts.values()), axis=0, initial=0)
        header = (self.name, "tried", "refused", "accepted", "failures")
        return text_table(header, [(name, *map(str, row)) for name, row in counts.items()])


def try_one(
    findings: Findings,
    case: str,
    number: int,
    directory: Path,
    variables: Mapping[str, str],
    write: Writer,
) -> None:
    """Runs a command on what it writes; without a new failure no files are left."""
    directory.mkdir(parents=True)
    command = write(directory, findings.chance(case, number))
    ended = forks.run(command, directory, variables, _SECONDS, MOST_BYTES)
    if findings.add(case, ended, directory / "out"):
        line = f"cd {directory} && {sys.executable} -m {shlex.join(command)}"
        (directory / "command").write_text(f"{line}\n")
        (directory / "stderr").write_text(ended.stderr)
        print(f"  {ended}\n  {line[:1000]}", file=sys.stderr, flush=True)
    else:
        shutil.rmtree(directory)


def main() -> None:
    """All formats in turn, in a new directory each time."""
    known = [*FORMATS, _COMMAND_LINES]
    if unknown := set(FLAGS.formats) - set(known):
        raise UserError(f"--formats: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    output = chosen_output()
    findings = Findings("fuzz", FLAGS.seed, FLAGS.minutes)
    with Scratch(findings) as scratch:
        forks.preload()
        good = Good(scratch / "good", settings(scratch))
        writers = {name: writer(name, good) for name in FLAGS.formats or known}
        for number in findings.rounds(FLAGS.count):
            for case, write in writers.items():
                if findings.has_time():
                    directory = scratch / case.replace(" ", "-") / str(number)
                    try_one(findings, case, number, directory, good.variables, write)
    findings.finish(output)


def writer(name: str, good: Good) -> Writer:
    """The function that writes changed inputs of a format, or command lines."""
    return CommandLines(good).write if name == _COMMAND_LINES else FORMATS[name](good).write


def settings(scratch: Path) -> dict[str, str]:
    """The environment variables of all programs."""
    return {
        "XDG_CACHE_HOME": str(scratch / "home"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0",  # otherwise programs start themselves anew
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
    }


if __name__ == "__main__":
    run(main)
