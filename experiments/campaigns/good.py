"""Good inputs of every format, which `fuzz` changes; each is made when it is first wanted."""

from __future__ import annotations

import datetime
import functools
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from backports import zstd

from dlrm_jax.data.formats.npy import NpzWriter
from experiments.campaigns import forks

TINY = ("--embedding_dim=4", "--bottom_mlp=4", "--top_mlp=4,1", "--batch_size=8",
        "--evaluation_batch_size=64", "--steps=1", "--checkpoint_every=0",
        "--eval_every=0")  # fmt: skip
"""Flags of a run that is over in a moment."""

_ROWS = 60
_SCHEMA = {
    "label": "label", "dense": ["price"], "categorical": ["shop", "viewed"], "timestamp": "time",
    "weight": "weight", "bag_lengths": {}, "dense_transform": "log",
}  # fmt: skip


class Good:
    """Good inputs in a new directory, ``home``; a property for each that a command makes.

    Args:
        home: the directory.
        variables: environment variables of all programs.
    """

    def __init__(self, home: Path, variables: Mapping[str, str]):
        home.mkdir()
        _write_logs(home)
        self.home = home
        self.variables = variables

    @functools.cached_property
    def parquet(self) -> Sequence[Path]:
        """The log as Parquet, with columns of several types."""
        self.succeed(forks.call(lambda: _write_parquet(self.home), self.home, self.variables))
        return sorted(self.home.glob("*.parquet"))

    @functools.cached_property
    def prepared(self) -> Path:
        """Prepared arrays."""
        log, schema = self.home / "log.csv", self.home / "schema.json"
        return self._make("prepared", "preprocess", f"--input={log}", f"--schema={schema}")

    @functools.cached_property
    def run(self) -> Path:
        """The workdir of a run with one checkpoint."""
        return self._make("run", "train", f"--data={self.prepared}", *TINY, flag="workdir")

    @functools.cached_property
    def checkpoint(self) -> Path:
        """The checkpoint of the run."""
        return self.run / "checkpoints" / "00000001"

    @functools.cached_property
    def tables(self) -> Path:
        """The tables of the run as NumPy files."""
        flags = (f"--checkpoint={self.checkpoint}", "--tables=shop,viewed", "--tables_format=npy")
        return self._make("tables", "predict", *flags, flag="tables_output")

    @functools.cached_property
    def artifact(self) -> Path:
        """An artifact of the run."""
        return self._make("artifact", "export", f"--run={self.run}")

    @functools.cached_property
    def plan(self) -> Path:
        """A plan."""
        return self._make("plan.json", "plan", "--preset=small", "--mesh=1x2")

    @functools.cached_property
    def profile(self) -> Path:
        """A profile of the locality of ids."""
        trace = f"--trace={self.home}/trace.txt"
        return self._make("profile.json", "generate", trace, flag="save_profile")

    def _make(self, name: str, *command: str, flag: str = "output") -> Path:
        made = self.home / name
        arguments = ("dlrm_jax", *command, f"--{flag}={made}")
        self.succeed(forks.run(arguments, self.home, self.variables, 300, 8 << 30))
        return made

    @staticmethod
    def succeed(ended: forks.Ended) -> None:
        """Raises a RuntimeError if a program that makes a good input failed."""
        if ended.outcome != "done":
            raise RuntimeError(f"cannot make good inputs: {ended}\n{ended.stderr}")


def _write_logs(home: Path) -> None:
    """Logs with an effect of the label, JSON, arrays and MovieLens, without Polars."""
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 9, (_ROWS, 40)).astype("<i4")
    numbers[:, 0] = np.arange(_ROWS) % 2
    lines = [
        "\t".join([*map(str, row[:14]), *(f"{x:08x}" if x else "" for x in row[14:])]) + "\n"
        for row in numbers
    ]
    text, binary = "".join(lines).encode(), numbers.tobytes()
    for name, content in (
        ("day_0", text),
        ("day_0.gz", gzip.compress(text)),
        ("day_0.zst", zstd.compress(text)),
        ("binary", binary),
        ("binary.zst", zstd.compress(binary)),
        ("schema.json", json.dumps(_SCHEMA).encode()),
        ("trace.txt", b"".join(b"%d\n" % (x % 7) for x in range(50))),
    ):
        (home / name).write_bytes(content)
    rows = [
        f"{i % 2},{i % 7}.5,s{i % 7},v{i % 5},2026-11-{25 + i // 30} 10:{i % 30:02},{1 + i % 2}\n"
        for i in range(_ROWS)
    ]
    (home / "log.csv").write_text("label,price,shop,viewed,time,weight\n" + "".join(rows))
    for name in ("arrays", "bags", "ml-100k", "ml-latest"):
        (home / name).mkdir()
    for day in range(2):
        for name in ("arrays", "bags"):
            stem = home / name / f"day_{day}"
            np.save(f"{stem}_dense.npy", numbers[:, 1:3].astype(np.float32))
            np.save(f"{stem}_labels.npy", numbers[:, :1])
        np.save(home / "arrays" / f"day_{day}_sparse.npy", numbers[:, 14:17])
        path = home / "bags" / f"day_{day}_sparse_multi_hot.npz"
        with NpzWriter(path) as archive:
            for name, bag in (("0", numbers[:, 14:17]), ("1", numbers[:, 17:18])):
                with archive.member(name, bag.shape, np.int32) as member:
                    member.append(bag)
    # 99 items that a user hasn't rated are candidates.
    ratings = [(i % 5 + 1, i + 1, i % 5 + 1, 1000 + i) for i in range(130)]
    genres = "|".join(["0", "1"] + ["0"] * 17)
    for name, header, separator in (
        ("ml-100k/u.data", "", "\t"),
        ("ml-latest/ratings.csv", "userId,movieId,rating,timestamp\n", ","),
    ):
        lines = [separator.join(map(str, row)) + "\n" for row in ratings]
        (home / name).write_text(header + "".join(lines))
    movies = [f"{i},Movie {i} (19{i + 50}),Comedy|Drama\n" for i in range(1, 12)]
    (home / "ml-latest/movies.csv").write_text("movieId,title,genres\n" + "".join(movies))
    items = [f"{i}|Movie {i} (19{i + 50})|01-Jan-1995||http://x|{genres}\n" for i in range(1, 12)]
    (home / "ml-100k/u.item").write_text("".join(items))
    users = [f"{i}|2{i}|M|artist|8571{i}\n" for i in range(1, 6)]
    (home / "ml-100k/u.user").write_text("".join(users))


def _write_parquet(home: Path) -> None:
    """The log as Parquet, with columns of several types."""
    import polars as pl

    label = [i % 2 for i in range(_ROWS)]
    texts = [f"s{i % 7}" for i in range(_ROWS)]
    days = [datetime.datetime(2026, 11, 25 + i // 30, 10, i % 30) for i in range(_ROWS)]
    columns = {
        "price": [i % 7 + 0.5 for i in range(_ROWS)], "shop": texts, "viewed": texts,
        "time": days, "weight": [1.0] * _ROWS,
    }  # fmt: skip
    for name, changes in {
        "plain": {},
        "bool": {"label": pl.Series(label).cast(pl.Boolean)},
        "lists": {"viewed": [[i % 3, i] for i in range(_ROWS)]},
        "list-of-text": {"viewed": [[x] for x in texts], "shop": [[]] * _ROWS},
        "deep": {"viewed": [[[1]]] * _ROWS},
        "struct": {"viewed": [{"a": 1}] * _ROWS},
        "struct-price": {"price": [{"a": 1}] * _ROWS},
        "binary": {"viewed": [b"\xff"] * _ROWS},
        "categories": {"viewed": pl.Series(texts, dtype=pl.Categorical)},
        "unsigned": {"viewed": pl.Series([2**64 - 1] * _ROWS, dtype=pl.UInt64)},
        "negative": {"viewed": [-1] * _ROWS},
        "floats": {"viewed": [float("nan"), 0.0, -0.0] * (_ROWS // 3)},
        "decimal": {"price": pl.Series([1] * _ROWS).cast(pl.Decimal(10, 2))},
        "dates": {"time": [x.date() for x in days], "viewed": days},
        "durations": {"price": pl.Series(label).cast(pl.Duration("us"))},
        "texts": {"price": texts, "label": [str(x) for x in label]},
        "nulls": {name: [None] * _ROWS for name in ("price", "shop", "viewed")},
        "null-label": {"label": [None, 1] * (_ROWS // 2)},
        "null-time": {"time": [None, days[0]] * (_ROWS // 2)},
        "null-weight": {"weight": [None, 1.0] * (_ROWS // 2)},
        "label": {"label": [0.5] * _ROWS},
        "infinite": {"price": [float("inf")] * _ROWS, "weight": [float("inf")] * _ROWS},
        "times": {"time": pl.Series(range(_ROWS)).cast(pl.Time)},
        "zones": {"time": pl.Series(days).dt.replace_time_zone("Asia/Tokyo")},
    }.items():
        frame = pl.DataFrame({"label": label} | columns | changes)
        frame.write_parquet(home / f"{name}.parquet")
    pl.DataFrame({"label": label} | columns).head(0).write_parquet(home / "empty.parquet")
