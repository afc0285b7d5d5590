"""Trees of arrays as Orbax checkpoints, without what Orbax leaves in memory."""

from __future__ import annotations

import ctypes
import gc
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from dlrm_jax.errors import UserError


def release_memory() -> None:
    """Returns free memory to the system; call it before and after moving large arrays.

    Orbax leaves arrays in reference cycles. And glibc keeps memory that XLA's compiler has freed;
    without a compilation cache, the peak of `experiments.benchmarks.step` would include it.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:  # other C libraries don't have it
            trim(0)


def save(path: Path, tree: Any) -> None:
    """Writes a tree of arrays as an Orbax checkpoint of its own.

    Raises:
        OSError: the disk is full or can't be written to.
    """
    try:
        with _context():
            ocp.save(str(path.absolute()), tree)
    except ValueError as error:  # TensorStore's form of errors of the file system
        raise OSError(str(error)) from error


def load(path: Path, abstract: Any, partial: bool = False) -> Any:
    """Reads a tree of arrays.

    Args:
        path: directory that `save` wrote.
        abstract: tree of shapes, dtypes and shardings.
        partial: whether ``abstract`` may name only some of the arrays.

    Raises:
        UserError: the arrays aren't there or are damaged.
    """
    try:
        with _context(partial):
            return ocp.load(str(path.absolute()), abstract)
    except (ValueError, OSError, KeyError) as error:
        _drop_coroutines(error)
        raise UserError(f"cannot read the checkpoint {path}: {error}") from error


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
    context.memory_options.deepcopy_host_arrays = False  # saving blocks; nothing changes meanwhile
    return context
