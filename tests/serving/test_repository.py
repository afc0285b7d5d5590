"""Tables that change while they are served are told of."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlrm_jax.serving.repository import Repository


def no_model(_: object) -> Any:
    return SimpleNamespace(close=lambda: None)


def test_tables_that_are_written_into_while_they_are_served(
    artifact: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    copy = shutil.copytree(artifact, tmp_path / "copy")
    repository = Repository(copy, no_model)
    caplog.set_level(logging.ERROR)
    path = copy / "tables" / "C2.rows"
    content = path.read_bytes()
    (tmp_path / "new.rows").write_bytes(content)
    (tmp_path / "new.rows").rename(copy / "tables" / "C1.rows")  # the map keeps the old file
    repository.refresh()
    assert caplog.messages == []
    path.write_bytes(bytes(len(content)))
    assert repository.refresh() == []
    repository.refresh()
    (message,) = caplog.messages
    assert f"version 6: {path} was changed while it is served" in message
