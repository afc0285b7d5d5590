from __future__ import annotations

from pathlib import Path

import pytest

from dlrm_jax.data.directory import load_directory
from dlrm_jax.serving.export import export
from dlrm_jax.serving.trained_model import TrainedModel

PREVIOUS = Path(__file__).parents[1] / "previous"
RUN = PREVIOUS / "run_of_format_3"


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of a small run, with its vocabularies; not to be changed."""
    directory = tmp_path_factory.mktemp("exported") / "artifact"
    export(TrainedModel.read(RUN), directory, "small", "float32", load_directory(PREVIOUS / "data"))
    return directory
