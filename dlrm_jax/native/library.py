"""Builds and loads the shared library of the C++ files in this directory."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path

import jax

from dlrm_jax.errors import UserError
from dlrm_jax.files import cache_directory, move_into_place

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
    "-shared",
    "-fPIC",
)

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
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    target = path()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        library = Path(directory) / target.name
        # -isystem, not -I: users can't fix warnings of the header.
        command = [*compiler, *_OPTIONS, "-isystem", jax.ffi.include_dir()]
        try:
            subprocess.run(
                [*command, *map(str, _SOURCES), "-o", str(library)],
                check=True,
                capture_output=True,
                text=True,
            )
        except FileNotFoundError:
            raise UserError(
                f"no C++ compiler named {compiler[0]}; install one, such as g++ or clang++, or "
                f"name it in CXX"
            ) from None
        except subprocess.CalledProcessError as error:
            raise UserError(f"{shlex.join(command)} failed:\n{error.stderr}") from None
        move_into_place(library, target)
    return target


@functools.cache
def load() -> bool:
    """Registers the functions with XLA and returns whether the library exists.

    The answer is cached: a library that is built later counts from the next start on, so that one
    program doesn't change its formulation half-way.
    """
    if not path().exists():
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
