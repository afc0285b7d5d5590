"""Disks that fail during a run, and that are in order again after it."""

from __future__ import annotations

import dataclasses
import errno
import functools
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from experiments.campaigns import harness
from experiments.campaigns.aims import Target
from experiments.campaigns.shim import preloaded


@dataclasses.dataclass(frozen=True)
class Try:
    """A run on a disk that fails.

    Attributes:
        target: job that is run.
        disk: directory that the disk is for; the job makes ``made`` in it.
        aside: directory for the log of the preloaded library.
        library: library of `shim`.
        chance: source of when and how it fails.
        share: share of the run's operations among which the one that fails is chosen.
    """

    target: Target
    disk: Path
    aside: Path
    library: Path
    chance: random.Random
    share: float

    @property
    def made(self) -> Path:
        """The directory that the job makes."""
        return self.disk / "made"

    def below(self, most: int) -> int:
        """A number from 1 to the share of the most."""
        return self.chance.randint(1, max(1, int(most * self.share)))

    def run(self, file_bytes: int | None = None) -> harness.Ended:
        """Runs the job, perhaps with a largest size of files."""
        job = self.target.job
        return harness.run(job.command(self.made), job.variables, file_bytes=file_bytes)

    def with_fault(self, fault: str) -> tuple[harness.Ended, list[list[str]]]:
        """Runs the job with a fault of ``shim.c``; its end, and the words of the log's lines."""
        log = self.aside / "log"
        log.unlink(missing_ok=True)
        root = self.target.job.home.parent  # with the logs that a preparation reads
        variables = preloaded(self.library, root, SHIM_FAULT=fault, SHIM_LOG=str(log))
        job = self.target.job
        ended = harness.run(job.command(self.made), job.variables | variables)
        return ended, [line.split(" ") for line in log.read_text().splitlines()]


Fault = Callable[[Try], AbstractContextManager[harness.Ended | None]]
"""A context in which the run has ended and the disk is in order again.

It gives the end of the run, None if the disk didn't fail.
"""


def operations(attempt: Try) -> dict[str, int]:
    """The number of operations of each kind in a run that nothing disturbs."""
    _, log = attempt.with_fault("none:1:0")
    return {words[1]: int(words[2]) for words in log if words[0] == "N"}


@contextmanager
def _call_fails(
    attempt: Try, counts: dict[str, int], operation: str, error: int, once: str = "", first: int = 0
) -> Iterator[harness.Ended | None]:
    number = first or attempt.below(counts[operation])
    ended, log = attempt.with_fault(f"{operation}:{number}:{error}{once}")
    yield ended if ["X", operation] in log else None


@contextmanager
def _file_sizes_limited(attempt: Try) -> Iterator[harness.Ended | None]:
    unbroken = attempt.target.job.home.parent / "unbroken"
    sizes = [path.stat().st_size for path in unbroken.rglob("*") if path.is_file()]
    ended = attempt.run(file_bytes=attempt.below(max(sizes)))
    yield ended if ended.outcome != "done" else None


@contextmanager
def _small_disk(attempt: Try) -> Iterator[harness.Ended | None]:
    def mount(options: str, *more: str) -> None:
        subprocess.run(["mount", *more, "-o", options, "tmpfs", str(attempt.disk)], check=True)

    mount(f"size={4 * attempt.below(100)}k", "-t", "tmpfs")
    try:
        ended = attempt.run()
        mount("remount,size=64m")
        yield ended if ended.outcome != "done" else None
    finally:
        subprocess.run(["umount", str(attempt.disk)], check=True)


@contextmanager
def _folder_vanishes(attempt: Try) -> Iterator[harness.Ended | None]:
    partial = attempt.target.kind == "preparation"
    folder = attempt.made.with_name("made.partial") if partial else attempt.made
    away = attempt.aside / "vanished"
    aim = attempt.chance.choice(attempt.target.aims[1:])

    def vanish(_: harness.Program) -> None:
        if folder.exists():
            folder.rename(away)

    ended = attempt.target.kill(attempt.made, aim, attempt.chance, shoot=vanish)
    if ended and away.exists():
        shutil.rmtree(folder, ignore_errors=True)  # the program may have begun anew
        away.rename(folder)
        yield ended
    else:
        yield None


def can_mount(directory: Path) -> bool:
    """Whether a small disk can be mounted at a directory."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "tmpfs", str(directory)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        return False
    subprocess.run(["umount", str(directory)], check=True)
    return True


def faults(counts: dict[str, int]) -> dict[str, Fault]:
    """All faults by their names, given the `operations` of an unbroken run."""
    call_fails = functools.partial(_call_fails, counts=counts)
    eio = functools.partial(call_fails, error=errno.EIO)
    return {
        "full after some bytes": functools.partial(
            call_fails, operation="bytes", error=errno.ENOSPC
        ),
        "full by a limit of file sizes": _file_sizes_limited,
        SMALL_DISK: _small_disk,
        "read-only from the start": functools.partial(
            call_fails, operation="change", error=errno.EROFS, first=1
        ),
        "read-only at some time": functools.partial(
            call_fails, operation="change", error=errno.EROFS
        ),
        "one write fails": functools.partial(eio, operation="write", once="!"),
        "writes fail at some time": functools.partial(eio, operation="write"),
        "one read fails": functools.partial(eio, operation="read", once="!"),
        "one flush fails": functools.partial(eio, operation="fsync", once="!"),
        "one rename fails": functools.partial(eio, operation="rename", once="!"),
        "the folder vanishes": _folder_vanishes,
    }


SMALL_DISK = "full, as it is small"
