"""The shared library of the C++ files in this directory: where it is, and its functions."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

import jax

from dlrm_jax.console import status
from dlrm_jax.errors import UserError
from dlrm_jax.files import cache_directory, move_into_place, scratch_directory
from dlrm_jax.locks import locked
from dlrm_jax.native.compiler import HEADERS, OPTIONS, SOURCES, command, compile_library, compiler

SETTING = "DLRM_JAX_BUILD"
"""The name of the environment variable that forbids to build the library without being asked."""
USE = "DLRM_JAX_KERNELS"
"""The name of the environment variable that forbids to use it, built or not."""

# The symbol of each function, by its name as a target in XLA.
TARGETS = {
    "dlrm_jax_pool": "DlrmJaxPool",
    "dlrm_jax_sgd": "DlrmJaxSgd",
    "dlrm_jax_rowwise_adagrad": "DlrmJaxRowwiseAdagrad",
    "dlrm_jax_unique_rows": "DlrmJaxUniqueRows",
    "dlrm_jax_interact": "DlrmJaxInteract",
    "dlrm_jax_interact_back": "DlrmJaxInteractBack",
    "dlrm_jax_pack": "DlrmJaxPack",
    "dlrm_jax_mlp": "DlrmJaxMlp",
    "dlrm_jax_mlp_back": "DlrmJaxMlpBack",
    "dlrm_jax_transposed": "DlrmJaxTransposed",
    "dlrm_jax_uniform_rows": "DlrmJaxUniformRows",
    "dlrm_jax_threefry": "DlrmJaxThreefry",
    "dlrm_jax_pointwise_attention": "DlrmJaxPointwiseAttention",
    "dlrm_jax_pointwise_attention_back": "DlrmJaxPointwiseAttentionBack",
}


def path() -> Path:
    """The path of the built library, with a hash of its sources and build settings in the name.

    The compiler counts by its command alone: where the library is used, there may be none.
    """
    sources = [file.read_text(encoding="utf-8") for file in (*SOURCES, *HEADERS)]
    made_of = (sources, importlib.metadata.version("jaxlib"), command(), OPTIONS, _processor())
    digest = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
    return cache_directory() / "native" / f"kernels-{digest}.so"


def is_built() -> bool:
    """Whether the library is there, as it was built.

    One that is cut off, such as by a copy of the cache that wasn't finished, would end the process
    when it is loaded. A checksum lies beside it.
    """
    try:
        return _sum_file(path()).read_text(encoding="ascii") == _checksum(path())
    except (OSError, UnicodeDecodeError):
        return False


def _sum_file(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _checksum(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def build() -> Path:
    """Compiles the library for this machine's processor, with ``$CXX`` or else c++.

    Returns:
        The path of the library, see `path`.

    Raises:
        UserError: there is no compiler, or it reports an error.
    """
    target = path()
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch_directory(target.with_name("kernels")) as directory:  # one name for all versions
        library = directory / target.name
        compile_library(library)
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            raise UserError(f"{target.parent}: the library can't be loaded: {error}") from error
        noted = _sum_file(library)
        noted.write_text(_checksum(library), encoding="ascii")
        move_into_place(noted, _sum_file(target))
        move_into_place(library, target)
    return target


def _setting(name: str, *allowed: str) -> str:
    """The value of an environment variable; the first of those allowed if it isn't set or empty."""
    found = os.environ.get(name) or allowed[0]
    if found not in allowed:
        raise UserError(f"{name}: expected {' or '.join(allowed)}, got {found!r}")
    return found


def _note(error: Exception) -> None:
    """Says why there are no kernels: a compiler's first error, or else the last line."""
    lines = str(error).splitlines()
    reason = next((x for x in lines if "error:" in x), lines[-1])
    status(
        f"note: without the native kernels, which make CPUs faster: {reason}; "
        f"python -m dlrm_jax.native says more, {SETTING}=never silences this",
        error=True,
    )


def _built(may_build: bool) -> bool:
    """Whether the library exists, after it has been built if it may and can be.

    Processes that start together wait for the first one's.
    """
    if is_built():
        return True
    target = path()
    damaged = f"{target} isn't as it was built, or {_sum_file(target).name} beside it is missing"
    if not may_build:
        if target.exists():
            status(
                f"note: without the native kernels: {damaged}; python -m dlrm_jax.native builds it "
                f"again",
                error=True,
            )
        return False
    try:
        if shutil.which(compiler()[0]) is None:
            raise UserError(f"no C++ compiler named {compiler()[0]}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.parent / "build.lock", "a build of the native kernels", wait=True):
            if not is_built():
                why = f"again: {damaged}" if target.exists() else "once"
                status(f"building the native kernels for this processor, {why}", error=True)
                build()
    except (UserError, OSError) as error:
        _note(error)
        return False
    return True


def forbidden() -> str | None:
    """The setting that forbids to use the library, for messages; None if none does.

    Raises:
        UserError: it has another value.
    """
    return f"{USE}=jax" if _setting(USE, "auto", "jax") == "jax" else None


def unbuilt() -> str | None:
    """The setting that forbids to build the library unasked, for messages; None if none does.

    Raises:
        UserError: it has another value.
    """
    return f"{SETTING}=never" if _setting(SETTING, "auto", "never") == "never" else None


def absence() -> str:
    """Why `load` has found none, and what to do, for messages.

    Raises:
        UserError: see `forbidden`.
    """
    if setting := forbidden():
        return f"{setting} forbids the native ones; unset it to use them"
    unasked = f", and {setting} forbids to build them unasked" if (setting := unbuilt()) else ""
    return (
        f"the native ones are not built for this machine and version of jaxlib{unasked}; run "
        f"python -m dlrm_jax.native, which builds them"
    )


@functools.cache
def load() -> bool:
    """Registers the functions with XLA and returns whether there are any.

    The library is built if it isn't there and ``$DLRM_JAX_BUILD`` isn't ``never``; with
    ``$DLRM_JAX_KERNELS`` as ``jax``, there are none. The answer is cached: a library that is built
    later counts from the next start on, so that one program doesn't change its formulation
    half-way.

    Raises:
        UserError: a setting has another value.
    """
    may_build = not unbuilt()  # first, so that no typo stays unseen
    if forbidden() or not _built(may_build):
        return False
    try:
        library = _library()
    except OSError as error:  # another machine with the same processor made it
        _note(error)
        return False
    for target, symbol in TARGETS.items():
        capsule = jax.ffi.pycapsule(getattr(library, symbol))
        jax.ffi.register_ffi_target(target, capsule, platform="cpu")
    return True


def functions() -> ctypes.CDLL:
    """The library's functions, those that are called outside of XLA among them; see `load`.

    Raises:
        UserError: there are none.
    """
    if not load():
        raise UserError(
            f"native kernels: expected them on this machine, found none: {absence()}, or load the "
            f"artifact here, in place of what was pickled where they are: it runs without them"
        )
    return _library()


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(str(path()))


def version() -> str | None:
    """The name of the library that `load` has loaded, which has a hash; None if there is none."""
    return path().stem if load() else None


def _processor() -> str:
    """The properties that -march=native depends on, as machines may share a home directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:  # not Linux
        return platform.machine() + platform.processor()
    properties = {line.split(":")[0].strip(): line for line in lines if ":" in line}
    return properties.get("flags") or properties.get("Features") or platform.machine()
