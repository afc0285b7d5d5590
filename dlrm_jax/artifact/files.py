"""The files of an artifact: that they lie in it, and are as they were written."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
import polars as pl

from dlrm_jax.artifact.manifest import MANIFEST
from dlrm_jax.artifact.notes import FileNote
from dlrm_jax.data.formats.compression import file_hash
from dlrm_jax.data.formats.npy import map_npy
from dlrm_jax.errors import DamagedArtifactError, UserError

# What reading raises if values don't fit each other; not what a machine or a library lacks.
_UNFIT = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError)


def note_files(directory: Path) -> dict[str, FileNote]:
    """The size and checksum of every file of a directory besides the manifest, by its name."""
    return {
        str(path.relative_to(directory)): FileNote(path.stat().st_size, file_hash(path))
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path != directory / MANIFEST
    }


def check_present(directory: Path, files: Mapping[str, FileNote]) -> None:
    """Checks that all files are there, in the directory, and as long as they were.

    Raises:
        DamagedArtifactError: one isn't; or its name, or any link, leads out of the directory; or
            something else is there that is neither a file nor a directory, such as a pipe.
    """
    for path in directory.rglob("*"):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            raise DamagedArtifactError(str(directory), name, "expected no link, found one")
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise DamagedArtifactError(
                str(directory), name, "expected a file or a directory, found none"
            )
    for name, note in files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name or str(path) != name:
            raise DamagedArtifactError(
                str(directory), name, "expected the name of a file in the artifact"
            )
        size = _size(directory, name)
        if size != note.bytes:
            raise DamagedArtifactError(
                str(directory), name, f"expected {note.bytes:,} bytes, it has {size:,}"
            )


def _size(directory: Path, name: str) -> int:
    try:
        status = (directory / name).lstat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DamagedArtifactError(str(directory), name, "it is missing") from error
    if not stat.S_ISREG(status.st_mode):
        raise DamagedArtifactError(str(directory), name, "expected a file, found none")
    return status.st_size


def check_content(directory: Path, name: str, note: FileNote, copy: Path | None = None) -> None:
    """Reads a file and compares its checksum.

    Args:
        directory: directory of the artifact.
        name: name of the file.
        note: size and checksum that it was written with.
        copy: copy of the file that is read in its place; None to read itself.

    Raises:
        DamagedArtifactError: it is another one.
    """
    found = file_hash(copy or directory / name)
    if found != note.xxh3_128:
        raise DamagedArtifactError(
            str(directory), name, f"expected the checksum {note.xxh3_128}, its bytes have {found}"
        )


def read_array(
    directory: Path, name: str, dtype: type[np.generic], shape: tuple[int | None, ...]
) -> np.ndarray:
    """The array of a file, mapped.

    Args:
        directory: directory of the artifact.
        name: name of the file.
        dtype: type of the numbers.
        shape: shape; None for an axis of any length.

    Raises:
        DamagedArtifactError: the file can't be read, or has another array.
    """
    try:
        array = map_npy(directory / name)
    except UserError as error:
        raise DamagedArtifactError(str(directory), name, str(error)) from error
    fits = len(shape) == array.ndim and all(
        length in (None, found) for length, found in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        lengths = ", ".join("any" if length is None else str(length) for length in shape)
        raise DamagedArtifactError(
            str(directory),
            name,
            f"expected {np.dtype(dtype)} of shape [{lengths}], it has {array.dtype} of shape "
            f"{[*array.shape]}",
        )
    return array


@contextmanager
def as_damage(directory: Path) -> Iterator[None]:
    """Context in which an artifact is read; values that no check foresaw are damage, too.

    Raises:
        DamagedArtifactError: the body has failed by a value.
    """
    try:
        yield
    except UserError:
        raise
    except (*_UNFIT, pl.exceptions.PolarsError) as error:
        reason = f"what it describes can't be read: {type(error).__name__}: {error}"
        raise DamagedArtifactError(str(directory), MANIFEST, reason) from error


def files_of_others(directory: Path, files: Mapping[str, FileNote]) -> list[str]:
    """Names of files in the directory that aren't part of the artifact."""
    entries = (path for path in directory.rglob("*") if not path.is_dir())
    return sorted({str(path.relative_to(directory)) for path in entries} - {MANIFEST, *files})
