"""A library of C that is preloaded into programs: a log of what is on disk, and faults of disks."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from dlrm_jax.errors import UserError

_SOURCE = Path(__file__).with_name("shim.c")


def build(directory: Path) -> Path:
    """Compiles the library into a directory; returns its path.

    Raises:
        UserError: there is no C compiler, or it can't compile the library.
    """
    compiler = next((x for x in map(shutil.which, ("cc", "gcc", "clang")) if x), None)
    if compiler is None:
        raise UserError("expected a C compiler (cc, gcc or clang) on the PATH, found none")
    library = directory / "shim.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        raise UserError(f"{compiler} can't compile {_SOURCE}: {built.stderr.strip()}")
    return library


def preloaded(library: Path, root: Path, **settings: str) -> dict[str, str]:
    """The environment variables of a program that has the library.

    Args:
        library: path of the library.
        root: directory whose files it concerns.
        settings: further variables of ``shim.c``, such as ``SHIM_FAULT``.
    """
    return {"LD_PRELOAD": str(library), "SHIM_ROOT": str(root), **settings}
