"""A folder of segments, and a run on it that nothing disturbs."""

from __future__ import annotations

from pathlib import Path

import pytest
from stream_job import SIZES, train
from stream_log import write_segments


@pytest.fixture(scope="session")
def segments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stream") / "segments"
    write_segments(directory, SIZES)
    return directory


@pytest.fixture(scope="session")
def unbroken(segments: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("unbroken")
    train(segments, workdir, "--stream_idle_seconds=0.1")
    return workdir
