"""The versions of a model on disk, and those that are loaded; new ones replace old ones at once."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl
import xxhash

from dlrm_jax.artifact.manifest import MANIFEST, Manifest, is_artifact
from dlrm_jax.console import once
from dlrm_jax.errors import UserError
from dlrm_jax.serving.served_model import ServedModel
from dlrm_jax.serving.table_files import TableFiles
from dlrm_jax.serving.tensors import model_inputs

_log = logging.getLogger(__name__)

_FAILURES = (Exception, pl.exceptions.PanicException)  # Polars' panics are no Exception


@dataclasses.dataclass(frozen=True)
class Version:
    """An artifact on disk.

    Attributes:
        name: name of the version: that of its directory, or the step of a lone artifact.
        directory: directory of the artifact.
        content: hash of its manifest, which has the checksums of all its files.
    """

    name: str
    directory: Path
    content: str


def versions_in(directory: Path) -> list[Version]:
    """The versions in a directory, the newest last.

    Args:
        directory: an artifact, or a directory of artifacts whose names are numbers.

    Raises:
        UserError: there is none, or a manifest can't be read.
    """
    if is_artifact(directory):
        step = Manifest.read(directory).step
        return [_version(str(step), directory)]
    if not directory.is_dir():
        raise UserError(
            f"expected an artifact or a directory of artifacts, there is no {directory}"
        )
    numbered = [x for x in directory.iterdir() if x.name.isdecimal() and is_artifact(x)]
    if not numbered:
        raise UserError(
            f"expected an artifact of dlrm_jax export, which has a {MANIFEST}, or a directory of "
            f"artifacts named by numbers, such as {directory / '1'}; {directory} is none of them"
        )
    return sorted((_version(x.name, x) for x in numbered), key=_number)


def _number(version: Version) -> int:
    return int(version.name)


def _version(name: str, directory: Path) -> Version:
    content = (directory / MANIFEST).read_bytes()
    return Version(name, directory, xxhash.xxh3_128(content).hexdigest())


class Refreshed(NamedTuple):
    """What a look for new versions has found.

    Attributes:
        loaded: names of the versions that were loaded, the newest last.
        failed: names of the versions that can't be loaded, and would be the newest that is served.
    """

    loaded: list[str]
    failed: list[str]


class _Newest(NamedTuple):
    """The newest versions.

    Attributes:
        loadable: versions to serve, the newest last.
        new: those of them that have just been loaded.
        failed: versions that can't be loaded, the newest first.
    """

    loadable: list[Version]
    new: dict[Version, tuple[ServedModel, TableFiles]]
    failed: dict[Version, BaseException]


class Repository:
    """The loaded versions of a model.

    Args:
        directory: artifact, or directory of artifacts named by numbers.
        load: function that loads a version and warms it up.
        keep: number of versions that are served: the newest that can be loaded.
        gone: called with the name of a version that isn't served any more, or couldn't be loaded.

    Raises:
        UserError: no version can be loaded.
    """

    def __init__(
        self,
        directory: Path,
        load: Callable[[Version], ServedModel],
        keep: int = 1,
        gone: Callable[[str], None] = lambda _: None,
    ):
        self._directory, self._load, self._keep, self._gone = directory, load, keep, gone
        self._changing = threading.Lock()
        self._loaded: dict[Version, ServedModel] = {}  # the newest last; replaced as a whole
        self._files: dict[Version, TableFiles] = {}
        self._complain = once(_log.error)
        self._reasons: dict[str, str] = {}  # of what failed in the last look
        self.refresh()

    @property
    def newest(self) -> ServedModel:
        """The newest version that is loaded."""
        return next(reversed(self._loaded.values()))

    @property
    def versions(self) -> list[str]:
        """The names of the versions that are loaded, the newest last."""
        return [version.name for version in self._loaded]

    def get(self, name: str | None = None) -> ServedModel | None:
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
        """Loads new versions and replaces the old ones; requests are answered all the while.

        Requests that an old version has taken are answered by it. A version that can't be loaded is
        logged, and an older one is served in its place: one that is served already, or the next.

        Raises:
            UserError: there is none, or no version can be loaded and none is served.
        """
        with self._changing:
            there, before = versions_in(self._directory), self._loaded
            loadable, new, failed = self._load_newest(there)
            if not (loadable or before):
                newest = failed.pop(there[-1])
                self._log_failures(failed.items())
                self._forget(there)
                raise newest
            served = loadable or [*before]
            self._loaded = {x: before.get(x) or new[x][0] for x in served}
            self._files = {x: self._files.get(x) or new[x][1] for x in served}
            self._log_failures(failed.items())
            if before and served[-1] in new:
                _compare_columns(next(reversed(before.values())), new[served[-1]][0])
            self._look_for_changes()
        _close(model for version, model in before.items() if version not in self._loaded)
        self._forget([*before, *failed])
        return Refreshed(
            [x.name for x in served if x in new],
            [x.name for x in failed if not loadable or _number(x) >= _number(served[-1])],
        )

    def _load_newest(self, there: Sequence[Version]) -> _Newest:
        """Loads the newest of the versions on disk, as far as they aren't loaded."""
        loadable: list[Version] = []
        new: dict[Version, tuple[ServedModel, TableFiles]] = {}
        failed: dict[Version, BaseException] = {}
        gone = [version for version in self._loaded if version not in there]
        # Of two versions of one name, the one on disk is looked at before the one it replaces.
        for version in sorted([*gone, *there], key=_number)[::-1]:
            if len(loadable) == self._keep:
                break
            if version in gone:  # it stays in the place of one that can't be loaded
                if failed and version.name not in {x.name for x in loadable}:
                    loadable.insert(0, version)
                continue
            if version not in self._loaded:
                try:
                    files = TableFiles(version.directory)
                    new[version] = self._load(version), files
                except _FAILURES as error:
                    failed[version] = error
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

    def try_refresh(self) -> Refreshed | None:
        """As `refresh`; None if there are no versions to be looked at, which is logged."""
        try:
            return self.refresh()
        except _FAILURES as error:
            self._log_failures([(None, error)])
            return None

    def _log_failures(self, failures: Iterable[tuple[Version | None, BaseException]]) -> None:
        """Logs why versions can't be loaded, or found: once, and where if no check foresaw it."""
        reasons: dict[str, str] = {}
        for version, error in failures:
            what = "the versions that are served stay"
            if version:
                what = f"version {version.name} can't be loaded"
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
            if (found := self.try_refresh()) and found.loaded:
                _log.info("serving version %s", ", ".join(found.loaded))

    def close(self) -> None:
        """Answers what waits, and takes no more."""
        _close(self._loaded.values())


def _compare_columns(old: ServedModel, new: ServedModel) -> None:
    """Logs which columns a new version wants otherwise than the one whose place it takes."""
    before, after = (
        {x["name"]: f"{x['datatype']} {x['shape']}" for x in model_inputs(model)}
        for model in (old, new)
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


def _close(models: Iterable[ServedModel]) -> None:
    for model in models:
        model.close()
