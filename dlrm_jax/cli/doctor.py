"""Says what this machine has for training and serving, and what it lacks.

    python -m dlrm_jax doctor

Each line names a part, what was found, and what it is good for or what to do. Nothing is changed,
but native kernels are built if they aren't yet and there is a compiler.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from pathlib import Path

from dlrm_jax import processor
from dlrm_jax.backend import devices, is_accelerator
from dlrm_jax.console import status
from dlrm_jax.errors import UserError
from dlrm_jax.native import layers, library
from dlrm_jax.native.thread_count import processors
from dlrm_jax.text_table import text_table

_EXTRAS = {
    "uvicorn": ("serve", "dlrm_jax serve"),
    "safetensors": ("torch", "convert of .safetensors files"),
    "torch": ("torch", "convert of .pt files"),
    "onnx": ("onnx", "convert --format=onnx"),
    "usearch": ("retrieval", "experiments.two_tower --index=usearch"),
    "redis": ("redis", "train --stream=redis://…"),
    "confluent-kafka": ("kafka", "train --stream=kafka://…"),
}
"""The extra that installs a package, and what needs it."""

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

Row = tuple[str, str, str]


def main() -> None:
    """Prints the table."""
    kernels, hint = _kernels()
    rows = [
        *_machine(bool(kernels)),
        _compiler(),
        ("native kernels", kernels or "none", hint),
        *_memory(),
        *_packages(),
    ]
    status(text_table(("part", "found", "what it brings, or what to do"), rows, left=(0, 1, 2)))


def _machine(kernels: bool) -> list[Row]:
    return [
        ("processor", processor.name(), f"{processors()} cores for this program"),
        ("instructions", " ".join(processor.instruction_sets()) or "unknown", _bfloat16(kernels)),
        _devices(),
    ]


def _devices() -> Row:
    try:
        found = devices()
    except UserError as error:
        return "devices", "none", str(error)
    kinds = f"{len(found)} x {found[0].device_kind} ({found[0].platform})"
    cpu = not is_accelerator(found[0].platform)
    hint = "JAX trains here" + ("; BUILD.md says how to install it for a GPU or TPU" if cpu else "")
    return "devices", kinds, hint


def _bfloat16(kernels: bool) -> str:
    if kernels and layers.supports_bfloat16():
        return "--compute_dtype=bfloat16 is fast: its MLPs are native"
    sets = processor.instruction_sets()
    lacks = kernels or (sets and "avx512_bf16" not in sets)
    what = "products of bfloat16 in this processor" if lacks else "native kernels, see below"
    return f"--compute_dtype=bfloat16 brings little here: no {what}"


def _compiler() -> Row:
    try:
        command = library.compiler()[0]
    except UserError as error:
        return "C++ compiler", "none", str(error)
    found = shutil.which(command)
    hint = "builds the native kernels" if found else "install g++ or clang++, or set CXX"
    return "C++ compiler", found or f"no {command}", hint


def _kernels() -> tuple[str | None, str]:
    """The name of the native kernels, None if there are none, and what is to be said of them."""
    try:
        if built := library.version():
            return built, "lookups, updates, interaction, bfloat16 MLPs, serving"
        if setting := library.forbidden():
            why = f"not used: {setting}"
        elif setting := library.unbuilt():
            why = f"not built unasked: {setting}; python -m dlrm_jax.native builds them"
        else:
            why = "python -m dlrm_jax.native builds them, or says why it can't"
    except UserError as error:  # a setting is misspelt, which ends all other commands
        why = str(error)
    return None, f"{why}; XLA does their work, more slowly"


def _memory() -> list[Row]:
    tunables = os.environ.get("GLIBC_TUNABLES")
    pages = _HUGE_PAGES.read_text(encoding="utf-8").strip() if _HUGE_PAGES.exists() else ""
    mode = pages.partition("[")[2].partition("]")[0]
    return [
        (
            "allocator",
            tunables or "no GLIBC_TUNABLES",
            "memory of a step is there for the next"
            if tunables
            else "commands set them; in your own loops, see Memory in BUILD.md",
        ),
        (
            "huge pages",
            mode or "unknown",
            "rows are read at random with fewer misses"
            if mode in ("always", "madvise")
            else f"echo madvise > {_HUGE_PAGES}, as root, makes large tables faster",
        ),
    ]


def _packages() -> list[Row]:
    found = [(name, _version(name)) for name in ("jax", "jaxlib", "flax", "optax")]
    rows = [("packages", ", ".join(f"{name} {version}" for name, version in found), "")]
    for name, (extra, need) in _EXTRAS.items():
        version = _version(name)
        install = "" if version else f"pip install -e '.[{extra}]' in the checkout, "
        rows.append((name, version or "not installed", f"{install}for {need}"))
    return rows


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
