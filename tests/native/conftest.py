from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from dlrm_jax.native import library


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the library is built, for these tests alone: once for all workers of pytest-xdist."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "native"


@pytest.fixture(scope="module", autouse=True)
def built(cache: Path) -> Iterator[None]:
    """The library, which every other test does without."""
    if not shutil.which("c++"):
        pytest.skip("there is no C++ compiler")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        cache.mkdir(exist_ok=True)
        with FileLock(cache / "lock"):
            if not library.is_built():
                library.build()
        library.load.cache_clear()
        assert library.load()
        yield
    library.load.cache_clear()
