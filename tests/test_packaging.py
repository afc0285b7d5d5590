"""What a wheel holds: the package with its typing mark and C++ sources, and no experiments."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_of_the_library_and_no_other_is_included():
    setuptools = pytest.importorskip("setuptools")  # newer environments have none
    found = set(setuptools.find_packages(str(ROOT), **SETUPTOOLS["packages"]["find"]))
    sources = {path.parent for path in (ROOT / "dlrm_jax").rglob("*.py")}
    assert found == {".".join(path.relative_to(ROOT).parts) for path in sources}
    assert "dlrm_jax.cli" in found


def test_the_typing_mark_and_the_sources_of_kernels_are_included():
    data = SETUPTOOLS["package-data"]
    assert list(data) == ["dlrm_jax"]
    package = ROOT / "dlrm_jax"
    found = {path for pattern in data["dlrm_jax"] for path in package.glob(pattern)}
    others = {path for path in package.rglob("*") if path.suffix in (".cc", ".h", ".typed")}
    assert found == others
    assert {path.suffix for path in found} == {".cc", ".h", ".typed"}
