from __future__ import annotations

from pathlib import Path

import pytest
from main_job import SMALL, succeed


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("unbroken")
    succeed("--mesh=2x4", *SMALL, "--steps=40", f"--workdir={workdir}")
    return workdir
