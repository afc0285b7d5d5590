"""A power cut, simulated: what a program hasn't flushed to disk is undone or cut short.

Contents: a file that has changed since its last fsync keeps a part of random length, but at least
what it had then. Names: what was made, renamed or removed in a directory since the directory's last
fsync is undone from a random change on, in reverse order. Changes of names keep their order, as on
ext4, XFS and btrfs.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
from pathlib import Path

from experiments.campaigns.shim import preloaded


@dataclasses.dataclass(frozen=True)
class _Change:
    """A line of the log; see ``shim.c``."""

    kind: str
    directory: int
    saved: str
    paths: tuple[Path, ...]


class Disk:
    """A directory whose power can be cut; everything in it is on disk when this is made.

    Args:
        root: the directory.
        aside: directory on the same file system for the log and what it undoes; it is emptied.
        library: library of `shim`.
    """

    def __init__(self, root: Path, aside: Path, library: Path):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        (aside / "saved").mkdir()
        self._root = root
        self._log, self._saved = aside / "log", aside / "saved"
        self._log.touch()
        self._flushed = {
            state.st_ino: (state.st_size, state.st_mtime_ns)
            for state in (path.lstat() for path in root.rglob("*"))
        }
        self.variables = preloaded(
            library, root, SHIM_LOG=str(self._log), SHIM_SAVED=str(self._saved)
        )
        """The environment variables of a program that writes to it."""

    def cut(self, chance: random.Random) -> list[str]:
        """Cuts the power, after the program has ended; a line for each thing that is gone."""
        changes, flushed = self._read()
        # Half of the time, all that may be lost is.
        first = flushed if chance.random() < 0.5 else chance.randint(flushed, len(changes))
        gone = [line for change in reversed(changes[first:]) for line in self._undo(change)]
        for path in sorted(self._root.rglob("*")):
            state = path.lstat()
            size, changed = self._flushed.get(state.st_ino, (0, 0))
            if path.is_file() and (size, changed) != (state.st_size, state.st_mtime_ns):
                kept = chance.randint(min(size, state.st_size), state.st_size)
                if kept < state.st_size:
                    os.truncate(path, kept)
                    gone.append(f"{path.name} keeps {kept} of {state.st_size} bytes")
        return gone

    def _read(self) -> tuple[list[_Change], int]:
        """All changes of names in their order, and how many of them are certainly on disk."""
        changes: list[_Change] = []
        flushed = 0
        for line in self._log.read_text().splitlines():
            kind, number, rest = line.split(" ", 2)
            if kind == "F":
                size, changed = map(int, rest.split())
                self._flushed[int(number)] = size, changed
                own = (i for i, x in enumerate(changes, 1) if x.directory == int(number))
                flushed = max(flushed, *own, 0)
                continue
            saved, rest = rest.split(" ", 1) if kind in "RU" else ("0", rest)
            changes.append(_Change(kind, int(number), saved, tuple(map(Path, rest.split("\t")))))
        return changes, flushed

    def _undo(self, change: _Change) -> list[str]:
        """Undoes one change; what is gone. The last one may not have happened: see the log."""
        first, *others = change.paths
        there = os.path.lexists(first)
        match change.kind, others:
            case "C", _ if not there:
                return []
            case "U" | "D" | "R", _ if there:
                return []
            case "C", _:
                shutil.rmtree(first) if first.is_dir() else first.unlink()
                return [f"{first.name} is gone"]
            case "R", [to]:
                if not os.path.lexists(to):
                    return []
                to.rename(first)
                self._put_back(change.saved, to)
                return [f"{to.name} is {first.name} again"]
            case "U", _:
                self._put_back(change.saved, first)
            case _:
                first.mkdir()
        return [f"{first.name} is back"]

    def _put_back(self, saved: str, path: Path) -> None:
        if saved != "0":
            os.link(self._saved / saved, path)
