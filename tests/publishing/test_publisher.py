"""A base and its deltas are, byte for byte, what a full export of the state is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from publishing_run import COMPOSED, SHARED, files_in, run_of
from saved_run import CONFIG

from dlrm_jax.artifact.row_formats import RowFormat
from dlrm_jax.config import Config
from dlrm_jax.publishing.compaction import compact
from dlrm_jax.publishing.published import Published, newest


def compacted(directory: Path) -> Path:
    """The base that the newest one and all its deltas give."""
    import threading

    published = newest(directory)
    assert published
    for _ in published.chain.rest():
        pass
    found: list[Published] = []
    compact(published, published.chain.number, threading.Lock(), found.append)
    return found[0].directory


@pytest.mark.parametrize(
    ("row_format", "mesh", "config"),
    [
        ("float32", "1x1", CONFIG),
        ("int8", "2x4", CONFIG),
        ("bfloat16", "1x1", SHARED),
        ("int4", "1x8", COMPOSED),
    ],
)
def test_base_and_deltas_are_a_full_export(
    row_format: RowFormat, mesh: str, config: Config, tmp_path: Path
):
    with run_of(tmp_path, row_format, mesh, config, share=1e9) as run:
        run.begin()
        for _ in range(4):
            run.publish()
            run.train(2)
        run.publisher.end(run.state)
        expected = files_in(run.exported(tmp_path / "expected", row_format))
    models = tmp_path / "models"
    assert sorted(x.name for x in models.iterdir()) == ["1", "1.deltas", "publishing.lock"]
    assert sorted(x.name for x in (models / "1.deltas").iterdir()) == [
        "000001", "000002", "000003", "000004",
    ]  # fmt: skip
    found = files_in(compacted(models))
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    before = files_in(models / "1")
    assert [name for name in found if name.startswith("tables") and found[name] != before[name]]
