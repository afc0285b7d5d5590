"""Small runs on a stream: their flags, and what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from main_job import arrays, losses, run
from stream_log import write_schema

PROGRAM = ("-m", "dlrm_jax", "train")
SIZES = [150, 40, 7, 300, 90, 213]
FLAGS = (
    "--table_rows=60",
    "--embedding_dim=8",
    "--bottom_mlp=8",
    "--top_mlp=8,1",
    "--batch_size=16",
    "--log_every=1",
    "--mesh=1x2",
    "--placements=user=row_wise",
    "--stream_window=80",
    "--metrics=gauc:user",
)


def flags(directory: Path, workdir: Path, *others: str) -> tuple[str, ...]:
    schema = write_schema(directory.parent / "schema.json")
    named = (f"--stream={directory}", f"--schema={schema}", f"--workdir={workdir}")
    return (*FLAGS, *named, *others)


def train(directory: Path, workdir: Path, *others: str) -> str:
    result = run(*flags(directory, workdir, *others), program=PROGRAM)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def lines(workdir: Path, split: str) -> list[dict[str, Any]]:
    read = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in read if line["split"] == split]


def assert_same(workdir: Path, unbroken: Path) -> None:
    steps = sum(SIZES) // 16
    assert losses(workdir) == losses(unbroken)
    assert lines(workdir, "prequential") == lines(unbroken, "prequential")
    expected, found = arrays(unbroken, steps), arrays(workdir, steps)
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
