"""Segments of a small log for tests of streams."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl

from dlrm_jax.data.preprocessing.schema import Schema

SCHEMA = Schema(
    "click",
    ("user", "item", "tags"),
    ("price",),
    {"tags": 2},
    weight="w",
    timestamp="t",
    groups=("user",),
)


def write_schema(path: Path) -> Path:
    """A file that has `SCHEMA`."""
    fields = {
        "label": "click",
        "categorical": ["user", "item", "tags"],
        "dense": ["price"],
        "bag_lengths": {"tags": 2},
        "weight": "w",
        "timestamp": "t",
        "groups": ["user"],
    }
    path.write_text(json.dumps(fields), encoding="utf-8")
    return path


def log(rows: int, seed: int = 0) -> pl.DataFrame:
    """Rows whose labels depend on user and item."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 20, rows), rng.integers(0, 30, rows)
    p = 1 / (1 + np.exp(-(user % 3 - item % 4 + 0.5)))
    tags = [[f"t{x}" for x in range(k % 4)] for k in range(rows)]
    return pl.DataFrame(
        {
            "click": (rng.random(rows) < p).astype(int),
            "price": rng.random(rows),
            "user": user,
            "item": [f"item {x}" for x in item],
            "tags": pl.Series(tags, dtype=pl.List(pl.String)),
            "w": 1.0 + rng.integers(0, 2, rows),
            "t": 1.7e9 + np.arange(rows),
        }
    )


def write_segments(directory: Path, sizes: list[int], rows: pl.DataFrame | None = None) -> None:
    """Cuts a log into segments: s000.parquet, s001.parquet, …."""
    directory.mkdir(exist_ok=True)
    rows = log(sum(sizes)) if rows is None else rows
    start = 0
    for i, size in enumerate(sizes):
        publish(directory, f"s{i:03d}.parquet", rows.slice(start, size))
        start += size


def publish(directory: Path, name: str, rows: pl.DataFrame) -> None:
    """Writes a segment as a writer of a stream does."""
    rows.write_parquet(directory / f".{name}")
    (directory / f".{name}").rename(directory / name)
