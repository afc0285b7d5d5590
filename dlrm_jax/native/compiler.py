"""Compiles the C++ files in this directory to a shared library, for this machine's processor."""

from __future__ import annotations

import concurrent.futures
import os
import shlex
import subprocess
from pathlib import Path

import jax

from dlrm_jax.errors import UserError

SOURCES = sorted(Path(__file__).parent.glob("*.cc"))
HEADERS = sorted(Path(__file__).parent.glob("*.h"))

# Not -ffast-math: it makes a library change the rounding of tiny numbers in its whole process.
OPTIONS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-pthread",
    "-fPIC",
)


def compile_library(library: Path) -> None:
    """Compiles it with ``$CXX`` or else c++, file by file side by side.

    Args:
        library: file to make; its directory gets the objects, too.

    Raises:
        UserError: there is no compiler, or it reports an error.
    """
    objects = [library.with_name(f"{source.stem}.o") for source in SOURCES]
    # -isystem, not -I: users can't fix warnings of the header.
    include = ("-isystem", jax.ffi.include_dir())
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        compiled = [
            threads.submit(_compile, *include, "-c", str(source), "-o", str(made))
            for source, made in zip(SOURCES, objects, strict=True)
        ]
        for each in compiled:
            each.result()
    _compile("-shared", *map(str, objects), "-o", str(library))


def _compile(*arguments: str) -> None:
    whole = [*compiler(), *OPTIONS, *arguments]
    try:
        subprocess.run(whole, check=True, capture_output=True, text=True)
    except (FileNotFoundError, PermissionError):
        raise UserError(
            f"no C++ compiler named {whole[0]}; install one, such as g++ or clang++, or name it "
            f"in CXX"
        ) from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip() or f"exit code {error.returncode}"
        raise UserError(f"{shlex.join(whole)} failed:\n{said}") from None


def compiler() -> list[str]:
    """The command of the C++ compiler: ``$CXX``, or else c++.

    Raises:
        UserError: ``$CXX`` is no command line.
    """
    try:
        words = shlex.split(command())
        if not words[0]:
            raise ValueError("No name")
        return words
    except ValueError as error:
        raise UserError(
            f"CXX: expected the command of a C++ compiler, such as g++, got {command()!r}: {error}"
        ) from None


def command() -> str:
    """The text of `compiler`."""
    return os.environ.get("CXX", "").strip() or "c++"
