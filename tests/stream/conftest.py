"""A folder of segments, and a run on it that nothing disturbs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from setups import step_of
from stream_job import SIZES, train
from stream_log import write_segments

from dlrm_jax.stream import step


@pytest.fixture(scope="module", autouse=True)
def _traced_once() -> Iterator[None]:
    """Runs of one learner share its step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "make_train_step", step_of)
        yield


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
