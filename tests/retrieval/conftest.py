"""A trained run that the tests of this directory share; not to be changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_run import prepared, trained

from dlrm_jax.retrieval.task import Task


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return prepared(tmp_path_factory.mktemp("retrieval"))


@pytest.fixture(scope="session")
def workdir(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("unbroken")
    trained(task, workdir, 60)
    return workdir
