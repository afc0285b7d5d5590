"""Small logs of one day each, with new values on every day."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from dlrm_jax.data.preprocessing.schema import Schema

SCHEMA = Schema("click", ("user", "item", "viewed"), ("age",), shared={"viewed": "item"})


def write_day(directory: Path, day: int, rows: int = 128) -> Path:
    """A log; each day has an item more, and other users."""
    rng = np.random.default_rng(day)
    items = [f"i{number}" for number in range(5 + day)]
    item = rng.choice(items, rows)
    frame = pl.DataFrame(
        {
            "user": [f"u{day * 3 + number}" for number in rng.integers(0, 9, rows)],
            "item": item,
            "viewed": rng.choice(items, rows),
            "age": rng.integers(1, 90, rows),
            "click": (rng.random(rows) < np.where(item < "i3", 0.8, 0.2)).astype(int),
            "buy": (rng.random(rows) < 0.1).astype(int),
        }
    )
    path = directory / f"day_{day}.parquet"
    frame.write_parquet(path)
    return path
