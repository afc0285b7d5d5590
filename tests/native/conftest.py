from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from dlrm_jax.native import library


@pytest.fixture(scope="session")
def cache(pytestconfig: pytest.Config) -> Path:
    """Where the library is built, for these tests alone: once for all workers and later runs."""
    return pytestconfig.cache.mkdir("native")


@pytest.fixture(scope="module", autouse=True)
def built(cache: Path) -> Iterator[None]:
    """The library, which every other test does without."""
    if not shutil.which("c++"):
        pytest.skip("there is no C++ compiler")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        with FileLock(cache / "lock"):
            if not library.is_built():
                library.build()
        library.load.cache_clear()
        assert library.load()
        yield
    library.load.cache_clear()
