"""The versions of a model on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from pathlib import Path

import xxhash

from dlrm_jax.artifact.manifest import MANIFEST, Manifest, is_artifact, kind_of
from dlrm_jax.errors import UserError

PUBLISHING_LOCK = "publishing.lock"
"""The file of a directory that `train --publish` has made."""

_FIRST = "1"


@dataclasses.dataclass(frozen=True)
class Version:
    """An artifact on disk.

    Attributes:
        name: name of the version: that of its directory, or the step of a lone artifact; 1 for a
            lone model of requests.
        directory: directory of the artifact.
        content: hash of its manifest, which has the checksums of all its files; empty if it can't
            be read.
    """

    name: str
    directory: Path
    content: str

    @property
    def number(self) -> int:
        """The number that the name is; the larger one is newer."""
        return int(self.name)


class VersionsError(UserError):
    """A directory that can't be served, though it can be read.

    Args:
        problem: fault, without names of files, which aren't for clients.
        message: message with what was expected, what is there, and what to do.
    """

    def __init__(self, problem: str, message: str):
        super().__init__(message)
        self.problem = problem


def versions_in(directory: Path) -> list[Version]:
    """The versions in a directory, the newest last.

    A numbered directory whose manifest is missing or can't be read is among them: it may be what is
    left of a copy, and whoever loads it learns why it can't be served.

    Args:
        directory: an artifact, or a directory of artifacts whose names are numbers.

    Raises:
        VersionsError: there is none, or two names are the same number.
        UserError: the manifest of a lone artifact can't be read.
    """
    if is_artifact(directory):
        # Other kinds note no step.
        name = _FIRST if kind_of(directory) else str(Manifest.read(directory).step)
        named = {name: directory}
    elif directory.is_dir():
        named = {x.name: x for x in directory.iterdir() if x.name.isdecimal()}
    else:
        raise VersionsError(
            "the directory of the versions isn't there",
            f"expected an artifact or a directory of artifacts, there is no {directory}",
        )
    versions = (_version(name, x) for name, x in named.items())
    found = sorted((x for x in versions if x), key=lambda x: (x.number, x.name))
    if not found and (directory / PUBLISHING_LOCK).is_file():
        raise VersionsError(
            "nothing is published yet",
            f"train --publish has published nothing in {directory} yet; start again when it prints "
            f"a line such as 'published step 500'",
        )
    if not found:
        raise VersionsError(
            "the directory of the versions holds none",
            f"expected an artifact of dlrm_jax export, which has a {MANIFEST}, or a directory of "
            f"artifacts named by numbers, such as {directory / '1'}; {directory} is none of them",
        )
    for older, newer in itertools.pairwise(found):
        if older.number == newer.number:
            raise VersionsError(
                f"two versions have the number {newer.number}",
                f"expected one version of each number, {older.directory} and {newer.directory} "
                f"have the same; rename one",
            )
    return found


def _version(name: str, directory: Path) -> Version | None:
    """The version in a directory; None if there is no directory, or none any more."""
    path, content = directory / MANIFEST, ""
    with contextlib.suppress(OSError):  # whoever loads it learns why
        if path.is_file():  # a pipe would wait for ever
            content = xxhash.xxh3_128(path.read_bytes()).hexdigest()
    return Version(name, directory, content) if content or directory.is_dir() else None
