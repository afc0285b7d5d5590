"""Trees of arrays as Orbax checkpoints, without what Orbax leaves in memory."""

from __future__ import annotations

import errno
import functools
import gc
import json
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from dlrm_jax.errors import DamagedCheckpointError, UserError
from dlrm_jax.training.metadata import status

# What Orbax and TensorStore raise, about files or arrays; besides, Orbax raises `Exception` itself.
_RAISED = (ValueError, OSError, KeyError, TypeError, AttributeError)

# Those of them that nothing but a fault of the program explains, if the arrays are those wanted.
_FAULTS = (TypeError, AttributeError)

# What proves that files are missing, truncated or changed: types, and statuses of TensorStore.
_DAMAGE = (
    FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError,
    ocp.errors.InvalidLayoutError,
)  # fmt: skip
_STATUSES = ("NOT_FOUND: ", "DATA_LOSS: ", "OUT_OF_RANGE: ")
_CONTENT = ("Error decoding ", "Data corruption detected")  # of what has been read

# What a file system says when it can't read a file that is there, or can't tell.
_REFUSED = tuple(
    os.strerror(number) for number in errno.errorcode if number not in (errno.ENOENT, errno.ENOTDIR)
)

# What reads raise that end when nobody waits for them any more.
_LATE = ("Event loop is closed", "Encountered error while reading array index")

# What asyncio and Orbax log about them, besides.
_REPETITIONS = (
    ("asyncio", "exception was never retrieved"),
    ("absl", "Failed to get metadata for"),
    ("absl", "_SignalingThread.run() raised an exception"),
)


def save(path: Path, tree: Any) -> None:
    """Writes a tree of arrays as an Orbax checkpoint of its own.

    Raises:
        OSError: the disk is full or can't be written to.
    """
    _hide_repetitions()
    try:
        with _context():
            ocp.save(str(path.absolute()), tree)
    except BaseException as error:  # a signal, too
        _drop_coroutines(error)
        if isinstance(error, ValueError):  # TensorStore's form of errors of the file system
            raise OSError(str(error)) from error
        raise


def load(path: Path, abstract: Any, partial: bool = False) -> Any:
    """Reads a tree of arrays.

    Args:
        path: directory that `save` wrote.
        abstract: tree of shapes, dtypes and shardings.
        partial: whether ``abstract`` may name only some of the arrays.

    Raises:
        UserError: ``path`` has other arrays, arrays of other shapes, or can't be read just now.
        DamagedCheckpointError: files are certainly missing or damaged.
    """
    _hide_repetitions()
    try:
        with _context(partial):
            return ocp.load(str(path.absolute()), abstract)
    except Exception as error:
        if not (isinstance(error, _RAISED) or type(error) is Exception):
            raise
        _drop_coroutines(error)
        if difference := _difference(path, abstract, partial):
            raise UserError(f"checkpoint {path} is of another model: {difference}") from error
        if isinstance(error, _FAULTS):
            raise
        raise _failure(path, error) from error


def _failure(path: Path, error: Exception) -> UserError:
    """The error for people: damage if that is certain, as others take its place then."""
    causes = _causes(error)
    is_damage = any(
        isinstance(x, _DAMAGE)
        or str(x).startswith(_STATUSES)
        or any(text in str(x) for text in _CONTENT)
        for x in causes
    )
    if is_damage and not _is_refused(path, causes):
        return DamagedCheckpointError(str(path), _reason(error))
    return UserError(
        f"cannot read the checkpoint {path}: {_reason(error)}; try again, or give another one"
    )


def _causes(error: BaseException | None) -> list[BaseException]:
    return [error, *_causes(error.__cause__)] if error else []


def _is_refused(path: Path, causes: Sequence[BaseException]) -> bool:
    """Whether the file system couldn't read what is there, or couldn't tell whether it is."""
    for cause in causes:
        if isinstance(cause, OSError) and not isinstance(cause, _DAMAGE):
            return True
        if any(text in str(cause) for text in _REFUSED):
            return True
    try:  # Orbax takes a file that it can't ask for as one that isn't there
        for directory in (path, *path.iterdir()):
            for name in ("_CHECKPOINT_METADATA", "_METADATA"):
                status(directory / name)
    except OSError as refusal:
        return not isinstance(refusal, _DAMAGE)
    return False


def _difference(path: Path, abstract: Any, partial: bool) -> str:
    """How the arrays on disk differ from those wanted; empty if they don't, or can't be read.

    Raises:
        UserError, DamagedCheckpointError: the description of the arrays can't be read, see `load`.
    """
    try:
        described: Any = ocp.metadata(str(path.absolute())).metadata
    except _RAISED as error:
        if isinstance(error, _FAULTS):
            raise
        _drop_coroutines(error)
        raise _failure(path, error) from error
    if described is None:  # Orbax has logged why
        return ""
    found, wanted = _shapes(described), _shapes(abstract)
    for name in wanted if partial else wanted | found:
        if found.get(name) != wanted.get(name):
            there = f"shape {found[name]}" if name in found else "no such array"
            here = f"shape {wanted[name]}" if name in wanted else "none"
            return f"{name} has {there} there, expected {here}"
    return ""


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {".".join(str(key.key) for key in path): tuple(x.shape) for path, x in leaves}


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error
    reason = next(iter(str(cause).splitlines()), type(cause).__name__)
    reason = re.split(r" \[tensorstore_spec(\[\d+\])?=", reason, maxsplit=1)[0]
    return f"KeyError {reason}" if isinstance(cause, KeyError) else reason


@functools.cache
def _hide_repetitions() -> None:
    """Hides lines on standard error that repeat a failure which `load` raises, from now on.

    TensorStore's other reads end while nobody waits for them any more, at any later time.
    """
    report = sys.unraisablehook

    def report_others(unraisable: sys.UnraisableHookArgs) -> None:
        if not str(unraisable.exc_value).startswith(_LATE):
            report(unraisable)

    sys.unraisablehook = report_others
    for name, text in _REPETITIONS:
        logging.getLogger(name).addFilter(lambda line, text=text: text not in line.getMessage())


def _drop_coroutines(error: BaseException) -> None:
    """Frees the coroutines of a failed load that nothing awaits.

    Python warns when it frees them, which could otherwise be anywhere.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        seen: BaseException | None = error
        while seen is not None:
            traceback.clear_frames(seen.__traceback__)
            seen = seen.__context__
        gc.collect()


def _context(partial: bool = False) -> ocp.Context:
    context = ocp.Context()
    context.pytree_options.loading.partial_load = partial
    # Trained weights don't compress, and trying takes most of the time of a save.
    context.array_options.saving.use_compression = False
    # The first copy is written, since its checksum is noted.
    context.array_options.saving.use_replica_parallel = False
    context.memory_options.deepcopy_host_arrays = False  # saving blocks; nothing changes meanwhile
    return context
