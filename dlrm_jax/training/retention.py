"""The checkpoints in a directory: which are whole, which is best, which are kept.

Process 0 alone calls what is here, see `checkpoint`.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlrm_jax.errors import DamagedCheckpointError, UserError
from dlrm_jax.files import delete_directory
from dlrm_jax.training.metadata import read_metadata, status
from dlrm_jax.training.metrics import HIGHER_IS_BETTER
from dlrm_jax.workspaces import delete, sweep

_ENTRIES = {"dense", "tables", "metadata"}  # also beginnings of Orbax's temporary names

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

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, ascending; some of them may be damaged.

        Raises:
            OSError: the file system can't tell.
        """
        if not _is_directory(self.directory):
            return []
        steps = (int(path.name) for path in self.directory.iterdir() if path.name.isdecimal())
        return sorted(step for step in steps if _is_directory(self.path(step)))

    def best(self) -> int | None:
        """The step of the whole checkpoint with the best validation metric, if any has one."""
        scores = self._scores()
        return max(scores, key=scores.__getitem__, default=None)

    def improves(self, validation: Mapping[str, Any] | None) -> bool:
        """Whether these metrics are better than those of all whole checkpoints."""
        new = self._score(validation)
        return new is not None and all(new > old for old in self._scores().values())

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
        """Renames damaged checkpoints, and says so.

        Args:
            damaged: fault of each, by its step.
        """
        for step, reason in damaged.items():
            name = aside = self.path(step).with_suffix(".damaged")
            count = 1
            while aside.exists():
                count += 1
                aside = name.with_name(f"{name.name}.{count}")
            self.path(step).rename(aside)
            _log.warning(
                "checkpoint %s is damaged: %s; it is %s now, and not used any more",
                self.path(step),
                reason,
                aside.name,
            )

    def delete_superseded(self) -> None:
        """Deletes whole checkpoints but the latest ones and the best; sets damaged ones aside."""
        whole, damaged = self._read()
        self.set_aside(damaged)
        for step in set(sorted(whole)[: -self.keep]) - {self.best()}:
            delete_directory(self.path(step))

    def sweep(self) -> None:
        """Deletes the remains of interrupted saves and deletions."""
        sweep(self.directory)
        for path in self.directory.glob("*.*ing"):  # of earlier versions
            if path.suffix in (".writing", ".deleting") and path.stem.isdecimal():
                entries = {entry.name.partition(".")[0] for entry in path.glob("*")}
                if path.is_dir() and entries <= _ENTRIES:
                    delete(path)

    def _read(self) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
        """The metadata of whole checkpoints, and what is wrong with damaged ones, by step."""
        whole, damaged = {}, {}
        for step in self.steps():
            try:
                whole[step] = read_metadata(self.path(step))
            except DamagedCheckpointError as error:
                damaged[step] = error.reason
            except UserError as error:  # another version's, or nobody may read it: it stays
                _log.warning("%s; it is left as it is", error)
        return whole, damaged

    def _scores(self) -> dict[int, float]:
        """The score of each validated checkpoint, by its step."""
        found = {step: self._score(each["validation"]) for step, each in self._read()[0].items()}
        return {step: score for step, score in found.items() if score is not None}

    def _score(self, validation: Mapping[str, Any] | None) -> float | None:
        """The metric that decides, negated if less is better; None without a finite one."""
        value = validation.get(self.best_metric) if validation else None
        if value is None or not math.isfinite(value):
            return None
        return value if HIGHER_IS_BETTER[self.best_metric] else -value


def _is_directory(path: Path) -> bool:
    found = status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)
