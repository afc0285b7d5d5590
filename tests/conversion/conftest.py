"""Models that the tests of conversions share, and a file of each."""

from __future__ import annotations

from pathlib import Path

import pytest
from converted import KINDS
from in_memory import InMemory

from dlrm_jax.conversion.exported import Exporter
from dlrm_jax.conversion.own_model import OwnModel


@pytest.fixture(scope="session")
def models() -> dict[str, InMemory]:
    configs = {config.model: config for config, _ in KINDS.values()}
    made = {name: InMemory.of(config) for name, config in configs.items()}
    return {kind: made[config.model] for kind, (config, _) in KINDS.items()}


@pytest.fixture(scope="session")
def files(models, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A safetensors file of each kind."""
    directory = tmp_path_factory.mktemp("files")
    found = {kind: directory / f"{kind}.safetensors" for kind in KINDS}
    for kind, (_, form) in KINDS.items():
        Exporter(OwnModel.of(models[kind]), form).write(found[kind])
    return found
