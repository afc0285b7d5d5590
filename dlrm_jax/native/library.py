"""Builds and loads the shared library of the C++ files in this directory."""

from __future__ import annotations

import concurrent.futures
import ctypes
import functools
import hashlib
import importlib.metadata
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import jax

from dlrm_jax.console import status
from dlrm_jax.errors import UserError
from dlrm_jax.files import cache_directory, locked, move_into_place

_SOURCES = sorted(Path(__file__).parent.glob("*.cc"))
_HEADERS = sorted(Path(__file__).parent.glob("*.h"))

# Not -ffast-math: it makes a library change the rounding of tiny numbers in its whole process.
_OPTIONS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-pthread",
    "-fPIC",
)

SETTING = "DLRM_JAX_BUILD"
"""The name of the environment variable that forbids to build the library without being asked."""

# The symbol of each function, by its name as a target in XLA.
TARGETS = {
    "dlrm_jax_pool": "DlrmJaxPool",
    "dlrm_jax_sgd": "DlrmJaxSgd",
    "dlrm_jax_rowwise_adagrad": "DlrmJaxRowwiseAdagrad",
    "dlrm_jax_interact": "DlrmJaxInteract",
    "dlrm_jax_interact_back": "DlrmJaxInteractBack",
    "dlrm_jax_pack": "DlrmJaxPack",
    "dlrm_jax_mlp": "DlrmJaxMlp",
    "dlrm_jax_mlp_back": "DlrmJaxMlpBack",
}


def path() -> Path:
    """The path of the built library, with a hash of its sources and build settings in the name."""
    sources = [file.read_text(encoding="utf-8") for file in (*_SOURCES, *_HEADERS)]
    made_of = (sources, importlib.metadata.version("jaxlib"), _OPTIONS, _processor())
    digest = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
    return cache_directory() / "native" / f"kernels-{digest}.so"


def build() -> Path:
    """Compiles the library for this machine's processor, with ``$CXX`` or else c++.

    Returns:
        The path of the library, see `path`.

    Raises:
        UserError: there is no compiler, or it reports an error.
    """
    target = path()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        objects = [Path(directory) / f"{source.stem}.o" for source in _SOURCES]
        # -isystem, not -I: users can't fix warnings of the header.
        include = ("-isystem", jax.ffi.include_dir())
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
            compiled = [
                threads.submit(_compile, *include, "-c", str(source), "-o", str(made))
                for source, made in zip(_SOURCES, objects, strict=True)
            ]
            for each in compiled:
                each.result()
        library = Path(directory) / target.name
        _compile("-shared", *map(str, objects), "-o", str(library))
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            raise UserError(f"{target.parent}: the library can't be loaded: {error}") from error
        move_into_place(library, target)
    return target


def _compile(*arguments: str) -> None:
    command = [*compiler(), *_OPTIONS, *arguments]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError(
            f"no C++ compiler named {command[0]}; install one, such as g++ or clang++, or name it "
            f"in CXX"
        ) from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip() or f"exit code {error.returncode}"
        raise UserError(f"{shlex.join(command)} failed:\n{said}") from None


def compiler() -> list[str]:
    """The command of the C++ compiler: ``$CXX``, or else c++.

    Raises:
        UserError: ``$CXX`` is no command line.
    """
    try:
        return shlex.split(os.environ.get("CXX") or "c++")
    except ValueError as error:
        raise UserError(f"CXX: {error}, got {os.environ['CXX']!r}") from None


def _note(error: Exception) -> None:
    """Says why there are no kernels: a compiler's first error, or else the last line."""
    lines = str(error).splitlines()
    reason = next((x for x in lines if "error:" in x), lines[-1])
    status(
        f"note: without the native kernels, which make CPUs faster: {reason}; "
        f"python -m dlrm_jax.native says more, {SETTING}=never silences this",
        error=True,
    )


def _built() -> bool:
    """Whether the library exists, after it has been built if it can be.

    Processes that start together wait for the first one's.
    """
    if path().exists():
        return True
    setting = os.environ.get(SETTING, "auto")
    if setting not in ("auto", "never"):
        raise UserError(f"{SETTING}: expected auto or never, got {setting!r}")
    if setting == "never":
        return False
    try:
        if shutil.which(compiler()[0]) is None:
            raise UserError(f"no C++ compiler named {compiler()[0]}")
        path().parent.mkdir(parents=True, exist_ok=True)
        with locked(path().parent / "build.lock", "a build of the native kernels", wait=True):
            if not path().exists():
                status("building the native kernels for this processor, once", error=True)
                build()
    except (UserError, OSError) as error:
        _note(error)
        return False
    return True


@functools.cache
def load() -> bool:
    """Registers the functions with XLA and returns whether there are any.

    The library is built if it isn't there and ``$DLRM_JAX_BUILD`` isn't ``never``. The answer is
    cached: a library that is built later counts from the next start on, so that one program doesn't
    change its formulation half-way.

    Raises:
        UserError: the setting is neither auto nor never.
    """
    if not _built():
        return False
    try:
        functions()
    except OSError as error:  # another machine with the same processor made it
        _note(error)
        return False
    for target, symbol in TARGETS.items():
        capsule = jax.ffi.pycapsule(getattr(functions(), symbol))
        jax.ffi.register_ffi_target(target, capsule, platform="cpu")
    return True


@functools.cache
def functions() -> ctypes.CDLL:
    """The library's functions, those that are called outside of XLA among them; see `load`."""
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
