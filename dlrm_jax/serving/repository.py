"""The versions of a model on disk, and those that are loaded; new ones replace old ones at once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from dlrm_jax.console import once
from dlrm_jax.errors import UserError
from dlrm_jax.serving.served_version import ServedVersion
from dlrm_jax.serving.table_files import TableFiles, artifact_tables
from dlrm_jax.serving.versions import Version, VersionsError, versions_in

_log = logging.getLogger(__name__)

_FAILURES = (Exception, pl.exceptions.PanicException)  # Polars' panics are no Exception
_NO_OTHER = UserError("no version that is there can be loaded")


class Refreshed(NamedTuple):
    """What a look for new versions has found.

    Attributes:
        loaded: names of the versions that were loaded, the newest last.
        failed: names of the versions that can't be loaded, and would be the newest that is served.
        problem: why there was nothing to look at, without names of files; empty if there was.
    """

    loaded: list[str]
    failed: list[str]
    problem: str = ""


class _Newest(NamedTuple):
    """The newest versions.

    Attributes:
        loadable: versions to serve, the newest last.
        new: those of them that have just been loaded.
        failed: versions that can't be loaded, the newest first.
    """

    loadable: list[Version]
    new: dict[Version, tuple[ServedVersion[Any], TableFiles]]
    failed: dict[Version, BaseException]


class Repository:
    """The loaded versions of a model.

    Args:
        directory: artifact, or directory of artifacts named by numbers.
        load: function that loads a version and warms it up.
        keep: number of versions that are served: the newest that can be loaded.
        gone: called with the name of a version that isn't served any more, or couldn't be loaded.
        tables: function of a version's directory that gives the files of its tables.

    Raises:
        UserError: no version can be loaded.
    """

    def __init__(
        self,
        directory: Path,
        load: Callable[[Version], ServedVersion[Any]],
        keep: int = 1,
        gone: Callable[[str], None] = lambda _: None,
        tables: Callable[[Path], Sequence[Path]] = artifact_tables,
    ):
        self._directory, self._load, self._keep, self._gone = directory, load, keep, gone
        self._tables = tables
        self._changing = threading.Lock()
        self._loaded: dict[Version, ServedVersion[Any]] = {}  # the newest last; replaced as a whole
        self._files: dict[Version, TableFiles] = {}
        self._complain = once(_log.error)
        self._reasons: dict[str, str] = {}  # of what failed in the last look
        self.refresh()

    @property
    def newest(self) -> ServedVersion[Any]:
        """The newest version that is loaded."""
        return next(reversed(self._loaded.values()))

    @property
    def versions(self) -> list[str]:
        """The names of the versions that are loaded, the newest last."""
        return [version.name for version in self._loaded]

    def get(self, name: str | None = None) -> ServedVersion[Any] | None:
        """A loaded version; the newest without a name, None if there is none of the name."""
        if name is None:
            return self.newest
        loaded = self._loaded.items()
        return next((model for version, model in loaded if version.name == name), None)

    def observe(self) -> None:
        """Has all that was answered counted."""
        for model in self._loaded.values():
            model.observe()

    def refresh(self) -> Refreshed:
        """Applies new deltas, loads new versions and replaces the old ones.

        Requests are answered all the while.

        Requests that an old version has taken are answered by it. A version that can't be loaded is
        logged, and the next older one that is there is served in its place. One that isn't there
        any more goes, unless what took its name, or all that is there, can't be loaded.

        Raises:
            UserError: there is none, or no version can be loaded and none is served.
        """
        with self._changing:
            for model in self._loaded.values():
                model.follow()
            there, before = versions_in(self._directory), self._loaded
            loadable, new, failed = self._load_newest(there)
            if not (loadable or before):
                newest = failed.pop(there[-1])
                self._log_failures(_reasons(failed))
                self._forget(there)
                raise newest
            served = loadable or [*before]
            self._loaded = {x: before.get(x) or new[x][0] for x in served}
            self._files = {x: self._files.get(x) or new[x][1] for x in served}
            stay = {
                f"version {x.name} is served although it isn't there any more": _NO_OTHER
                for x in served
                if x.name not in {y.name for y in there}
            }
            self._log_failures(_reasons(failed) | stay)
            if before and served[-1] in new:
                _compare_columns(next(reversed(before.values())), new[served[-1]][0])
            if before:
                _log_change(before, served, new)
            self._look_for_changes()
        _close(model for version, model in before.items() if version not in self._loaded)
        self._forget([*before, *failed])
        return Refreshed(
            [x.name for x in served if x in new],
            [x.name for x in failed if not loadable or x.number >= served[-1].number],
        )

    def _load_newest(self, there: Sequence[Version]) -> _Newest:
        """Loads the newest of the versions on disk, as far as they aren't loaded."""
        loadable: list[Version] = []
        new: dict[Version, tuple[ServedVersion[Any], TableFiles]] = {}
        failed: dict[Version, BaseException] = {}
        gone = {version.name: version for version in self._loaded if version not in there}
        for version in reversed(there):
            if len(loadable) == self._keep:
                break
            if version not in self._loaded:
                try:
                    files = TableFiles(self._tables(version.directory))
                    new[version] = self._load(version), files
                except _FAILURES as error:
                    failed[version] = error
                    if version.name in gone:  # which this would replace
                        loadable.insert(0, gone[version.name])
                    continue
                except BaseException:
                    _close(model for model, _ in new.values())
                    self._forget(there)
                    raise
            loadable.insert(0, version)
        return _Newest(loadable, new, failed)

    def _forget(self, versions: Iterable[Version]) -> None:
        """Tells of versions whose names aren't served."""
        for name in {version.name for version in versions} - {*self.versions}:
            self._gone(name)

    def _look_for_changes(self) -> None:
        """Logs tables that somebody has written into while they are served, each once."""
        for version, files in self._files.items():
            for path in files.changed():
                self._complain(
                    f"version {version.name}: {path} was changed while it is served, and answers "
                    f"may be wrong; export to a new directory instead, and start the server again"
                )

    def try_refresh(self) -> Refreshed:
        """As `refresh`, but if there are no versions to be looked at, it is logged and noted."""
        try:
            return self.refresh()
        except _FAILURES as error:
            self._log_failures({"the versions that are served stay": error})
            unread = "the directory of the versions can't be read"
            return Refreshed([], [], error.problem if isinstance(error, VersionsError) else unread)

    def _log_failures(self, failures: Mapping[str, BaseException]) -> None:
        """Logs what is wrong, and why: once, and where if no check foresaw it."""
        reasons: dict[str, str] = {}
        for what, error in failures.items():
            is_foreseen = isinstance(error, UserError | OSError)
            reasons[what] = str(error) if is_foreseen else f"{type(error).__name__}: {error}"
            if self._reasons.get(what) != reasons[what]:
                _log.error("%s: %s", what, reasons[what], exc_info=None if is_foreseen else error)
        self._reasons = reasons

    def watch(self, seconds: float, ended: threading.Event) -> None:
        """Looks for new versions from time to time, until the event; bad ones don't end it.

        Args:
            seconds: time between two looks.
            ended: event that ends it.
        """
        while not ended.wait(seconds):
            self.try_refresh()

    def close(self) -> None:
        """Answers what waits, and takes no more."""
        _close(self._loaded.values())


def _reasons(failed: Mapping[Version, BaseException]) -> dict[str, BaseException]:
    return {f"version {x.name} can't be loaded": error for x, error in failed.items()}


def _log_change(
    before: Iterable[Version], served: Sequence[Version], new: Iterable[Version]
) -> None:
    """Logs which versions come and go, and the newest, which answers, if it was there already."""
    names, loaded = [x.name for x in served], {x.name for x in new}
    earlier = [x.name for x in before]
    changes = [f"serving version {name}" for name in names if name in loaded]
    changes += [f"version {x} isn't served any more" for x in earlier if x not in names]
    if names[-1] != earlier[-1] and names[-1] not in loaded:
        changes.append(f"version {names[-1]} is the newest")
    if changes:
        _log.info("; ".join(changes))


def _compare_columns(old: ServedVersion[Any], new: ServedVersion[Any]) -> None:
    """Logs which columns a new version wants otherwise than the one whose place it takes."""
    before, after = (
        {x["name"]: f"{x['datatype']} {x['shape']}" for x in model.inputs()} for model in (old, new)
    )
    changes = [f"{name!r} is new" for name in after if name not in before]
    changes += [f"{name!r} is gone" for name in before if name not in after]
    changes += [
        f"{name!r} is {after[name]}, was {kind}"
        for name, kind in before.items()
        if after.get(name, kind) != kind
    ]
    if changes:
        _log.warning(
            "version %s takes other columns than version %s: %s; requests for the old ones may get "
            "400",
            new.version,
            old.version,
            ", ".join(changes),
        )


def _close(models: Iterable[ServedVersion[Any]]) -> None:
    for model in models:
        model.close()
