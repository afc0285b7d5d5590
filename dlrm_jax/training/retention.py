"""The checkpoints in a directory: which are whole, which is best, which are kept.

Process 0 alone calls what is here, see `checkpoint`.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from dlrm_jax.errors import DamagedCheckpointError, UserError
from dlrm_jax.files import delete_directory, flush
from dlrm_jax.training.metadata import files_of_others, read_metadata, status
from dlrm_jax.training.metrics import score
from dlrm_jax.workspaces import delete, sweep

_ENTRIES = {"dense", "tables", "host", "metadata"}  # also beginnings of Orbax's temporary names

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Retention:
    """The checkpoints in a directory.

    Attributes:
        directory: directory of the checkpoints, each named by its step.
        keep: number of latest checkpoints to keep; the best one is kept, too.
        best_metric: validation metric that decides which checkpoint is best.
    """

    directory: Path
    keep: int
    best_metric: str

    def path(self, step: int) -> Path:
        """The directory of a checkpoint."""
        return self.directory / f"{step:08d}"

    def prepare(self) -> None:
        """Makes the directory, and deletes the remains of interrupted saves and deletions.

        Raises:
            UserError: its path isn't one that Orbax can use, or is of something else.
        """
        check_path(self.directory)
        if not self._is_there():
            self.directory.mkdir()
        self.sweep()

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, ascending; some of them may be damaged.

        Raises:
            UserError: there is something else than a directory, as where a link leads to a disk
                that is away; or a checkpoint has another name than a run gives it.
            OSError: the file system can't tell.
        """
        for path in self.directory.iterdir() if self._is_there() else ():
            if path.name.isdecimal() and status(path / "metadata.json"):
                right = self.path(int(path.name)).name
                if path.name != right:
                    raise UserError(
                        f"{path}: expected the checkpoint of a step to have eight digits in its "
                        f"name; rename it to {right}, or move it out of the run's checkpoints"
                    )
        return self._steps()

    def best(self) -> int | None:
        """The step of the whole checkpoint with the best validation metric, if any has one."""
        return _highest(self._scores(self._read()[0]))

    def validations(self) -> dict[int, Mapping[str, Any]]:
        """The validation metrics of each whole checkpoint that has some, by its step, ascending."""
        whole, _ = self._read()
        return {step: each["validation"] for step, each in whole.items() if each["validation"]}

    def improves(self, validation: Mapping[str, Any] | None) -> bool:
        """Whether these metrics are better than those of all whole checkpoints."""
        new = score(validation, self.best_metric)
        old = self._scores(self._read()[0]).values()
        return new is not None and all(new > each for each in old)

    def has(self, step: int) -> bool:
        """Whether there is a whole checkpoint of a step; a damaged one is set aside."""
        if status(self.path(step)) is None:
            return False
        try:
            read_metadata(self.path(step))
        except DamagedCheckpointError as error:
            self.set_aside({step: error.reason})
            return False
        return True

    def set_aside(self, damaged: Mapping[int, str]) -> None:
        """Renames damaged checkpoints and their journals, and says so.

        Args:
            damaged: damage of each, by its step.
        """
        for step, reason in damaged.items():
            if (journal := journal_of(self.path(step))).exists():
                journal.rename(path_aside(journal))  # first, as `delete_superseded` deletes others
                flush(journal.parent)  # so that no loss of power keeps the second renaming alone
            aside = path_aside(self.path(step))
            self.path(step).rename(aside)
            _log.warning(
                "checkpoint %s is damaged: %s; it is %s now, and not used any more",
                self.path(step),
                reason,
                aside.name,
            )

    def delete_superseded(self) -> None:
        """Deletes whole checkpoints but the latest ones and the best; sets damaged ones aside.

        What can't be deleted is named in a warning, and tried again by the next call. A checkpoint
        that a user has put files into is kept. Journals of others than the latest one are
        deleted, too.
        """
        whole, damaged = self._read()
        self.set_aside(damaged)
        for step in sorted(set(sorted(whole)[: -self.keep]) - {_highest(self._scores(whole))}):
            if others := files_of_others(self.path(step), whole[step]):
                _warn(
                    f"checkpoint {self.path(step)} isn't deleted: {others[0]} isn't part of it; "
                    f"move it away, or delete the checkpoint"
                )
            else:
                delete_directory(self.path(step))
        self._delete_journals(journal_of(self.path(max(whole))) if whole else None)
        for path in sweep(self.directory):
            _warn(f"{path} can't be deleted now; each save tries it again")

    def _delete_journals(self, latest: Path | None) -> None:
        """Deletes all journals but that of the latest checkpoint, which no other one goes on to."""
        for path in self.directory.glob("*.journal"):
            is_ours = path.stem.isdecimal() and path.is_dir()
            if latest is None or path == latest or not is_ours:
                continue
            others = [x.name for x in path.iterdir() if not x.name.isdecimal() and x.name[0] != "."]
            if others:
                _warn(f"{path} isn't deleted: {others[0]} isn't part of it; move it away")
            else:
                delete_directory(path)

    def sweep(self) -> None:
        """Deletes the remains of interrupted saves and deletions."""
        sweep(self.directory)
        for path in self.directory.glob("*.*ing"):  # of earlier versions
            if path.suffix in (".writing", ".deleting") and path.stem.isdecimal():
                entries = {entry.name.partition(".")[0] for entry in path.glob("*")}
                if path.is_dir() and entries <= _ENTRIES:
                    delete(path)

    def _is_there(self) -> bool:
        """Whether there is the directory; not if there is nothing.

        Raises:
            UserError: there is something else.
        """
        if _is_directory(self.directory):
            return True
        if not os.path.lexists(self.directory):
            return False
        is_link = self.directory.is_symlink()
        found = f"a link to {self.directory.readlink()}" if is_link else "a file"
        raise UserError(
            f"{self.directory}: expected a directory or nothing, got {found}; mount the disk of "
            f"the checkpoints, or give another workdir to start anew"
        )

    def _steps(self) -> list[int]:
        """See `steps`; what a run that has begun finds besides is no reason to end it."""
        names = {path.name for path in self.directory.iterdir()} if self._is_there() else set()
        steps = sorted(int(name) for name in names if name.isdecimal())
        return [x for x in steps if self.path(x).name in names and _is_directory(self.path(x))]

    def _read(self) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
        """The metadata of whole checkpoints, and what is wrong with damaged ones, by step."""
        whole, damaged = {}, {}
        for step in self._steps():
            try:
                # One whose files can't be read just now keeps its place, which an older one or a
                # worse one would get.
                whole[step] = read_metadata(self.path(step), strict=False)
            except DamagedCheckpointError as error:
                damaged[step] = error.reason
            except UserError as error:  # another version's, or nobody may read it: it stays
                _warn(f"{error}; it is left as it is")
        return whole, damaged

    def _scores(self, whole: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
        """The score of each validated checkpoint, by its step, from the metadata of whole ones."""
        found = {s: score(each["validation"], self.best_metric) for s, each in whole.items()}
        return {step: value for step, value in found.items() if value is not None}


def journal_of(checkpoint: Path) -> Path:
    """The directory of a checkpoint's journal, which needn't be there, see `journal`."""
    return checkpoint.with_suffix(".journal")


def path_aside(path: Path) -> Path:
    """A name that is free, for what is damaged of a checkpoint or journal."""
    name = aside = path.with_name(f"{path.name}.damaged")
    count = 1
    while aside.exists():
        count += 1
        aside = name.with_name(f"{name.name}.{count}")
    return aside


def metadata_hash(checkpoint: Path) -> str | None:
    """The hash of a checkpoint's metadata, which have the checksums of all; None without any.

    Raises:
        UserError: the file system doesn't let them be read.
    """
    try:
        content = (checkpoint / "metadata.json").read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read the checkpoint {checkpoint}: {error}") from error
    return xxhash.xxh3_128_hexdigest(content)


def check_path(path: Path) -> None:
    """Checks that Orbax can write checkpoints to a path and find them again.

    Raises:
        UserError: the path has characters of patterns, which Orbax takes it for, or isn't text.
    """
    absolute = str(path.absolute())
    if re.search(r"[*?\[]", absolute):
        raise UserError(f"{path}: expected a path without *, ? and [; give another one")
    try:
        absolute.encode()
    except UnicodeEncodeError:
        raise UserError(f"{path}: expected a path in UTF-8; give another one") from None


def _highest(scores: Mapping[int, float]) -> int | None:
    return max(scores, key=scores.__getitem__, default=None)


@functools.cache
def _warn(text: str) -> None:
    """Warns once in a process, though each evaluation finds the same again."""
    _log.warning("%s", text)


def _is_directory(path: Path) -> bool:
    found = status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)
