"""Processes on machines of which not all have built the kernels."""

from __future__ import annotations

from pathlib import Path

from main_job import refused_by_hand


def test_processes_that_would_run_different_kernels_are_refused(cache: Path, tmp_path: Path):
    """Each has the cache of another machine; the second one's has the library."""
    caches = (tmp_path / "cache", cache)
    message = refused_by_hand(
        tmp_path,
        lambda index: ["--mesh=1x2"],
        lambda index: {"XDG_CACHE_HOME": str(caches[index])},
    )
    assert message.startswith(
        "error: kernels of updates is native in process 1 and jax in process 0; build them on all "
    )
