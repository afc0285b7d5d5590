"""Good inputs of every format, and the commands that read them; `fuzz` changes them."""

from __future__ import annotations

import dataclasses
import datetime
import gzip
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import zstandard

from experiments.campaigns import forks
from experiments.campaigns.mutations import (
    Mutation,
    mutate_bytes,
    mutate_json,
    mutate_lines,
    mutate_npy,
    one_of,
)

TINY = ("--embedding_dim=4", "--bottom_mlp=4", "--top_mlp=4,1", "--batch_size=8",
        "--evaluation_batch_size=64", "--steps=1", "--checkpoint_every=0", "--eval_every=0")  # fmt: skip
"""Flags of a run that is over in a moment."""

LOADED = "can't be split evenly"
"""A part of the error of commands that end when their data are loaded."""

_ROWS = 60
_SCHEMA = {
    "label": "label", "dense": ["price"], "categorical": ["shop", "viewed"], "timestamp": "time",
    "weight": "weight", "bag_lengths": {}, "dense_transform": "log",
}  # fmt: skip
_DLRM = ("dlrm_jax",)
_PREPROCESS = (*_DLRM, "preprocess", "--output={out}", "--on_bad_line={stop or skip}")
_CRITEO = (*_PREPROCESS, "--input={input}")
_NAMED = (*_PREPROCESS, "--input={input}", "--schema={home}/schema.json")


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of input.

    Attributes:
        sources: good files or directories.
        mutation: mutation of one file.
        commands: commands that read it. ``{input}`` is the changed file or directory, ``{out}`` a
            path to make, ``{home}`` the directory of the good ones, ``{a or b}`` one of two words.
        files: pattern of the files of a directory that are changed.
    """

    sources: Sequence[Path]
    mutation: Mutation
    commands: Sequence[Sequence[str]]
    files: str = ""

    def write(self, directory: Path, chance: random.Random) -> list[str]:
        """Writes a changed input to a directory; a command that reads it."""
        source = chance.choice(self.sources)
        copy = directory / source.name
        if source.is_dir():
            shutil.copytree(source, copy)
            changed = chance.choice(sorted(x for x in copy.glob(self.files) if x.is_file()))
        else:
            shutil.copy(source, copy)
            changed = copy
        changed.write_bytes(self.mutation(changed.read_bytes(), chance))
        command = chance.choice(self.commands)
        words = {"input": copy, "out": directory / "out", "home": source.parent}
        words |= {x: chance.choice(x.split(" or ")) for x in ("stop or skip",)}
        return [item.format_map(words) for item in command]


def formats(home: Path, variables: dict[str, str]) -> dict[str, Format]:
    """Makes good inputs in a new directory; their formats by name.

    Raises:
        RuntimeError: a command that makes one failed.
    """
    home.mkdir()
    _write_logs(home)
    _succeed(forks.call(lambda: _write_parquet(home), home, variables))
    run = home / "run"
    for command in (
        ("preprocess", f"--input={home}/log.csv", f"--schema={home}/schema.json", f"--output={home}/prepared"),
        ("train", f"--data={home}/prepared", f"--workdir={run}", *TINY),
        ("plan", "--preset=small", "--mesh=1x2", f"--output={home}/plan.json"),
        ("generate", f"--trace={home}/trace.txt", f"--save_profile={home}/profile.json"),
        ("predict", "--checkpoint=run/checkpoints/00000001", "--tables=C1,C2",
         f"--tables_output={home}/tables", "--tables_format=npy"),
    ):  # fmt: skip
        _succeed(forks.run((*_DLRM, *command), home, variables, 300, 8 << 30))
    both = one_of(mutate_bytes, mutate_lines("\t"), mutate_lines("\t"))
    tables = (*_DLRM, "predict", "--checkpoint={input}/checkpoints/00000001", "--tables=C1,C2",
              "--tables_output={out}")  # fmt: skip
    evaluate = (*_DLRM, "train", "--data={home}/prepared", "--workdir={input}", *TINY)
    predict = (*_DLRM, "predict", "--checkpoint={input}/checkpoints/00000001", "--output={out}.csv",
               "--data={home}/log.csv", "--batch_size=8")  # fmt: skip
    restore = (tables, tables, (*evaluate, "--eval_only"), evaluate, predict)
    report = (*_DLRM, "report", "--data={input}")
    train = (*_DLRM, "train", "--data={input}", "--workdir={out}-run", *TINY)
    # Ends when the data are loaded: a batch of 8 can't be split over three devices.
    load = ("experiments.movielens", "--data={input}", "--models=dlrm", "--workdir={out}-run",
            "--batch_size=8", "--mesh=3x1")  # fmt: skip
    movielens = (load, (*load, "--history=5"), (*load, "--task=ranking", "--features=user,item"))
    csv = one_of(mutate_bytes, mutate_lines(","), mutate_lines(","))
    js = one_of(mutate_json, mutate_json, mutate_json, mutate_bytes)
    arrays = one_of(mutate_bytes, mutate_npy)
    items = one_of(mutate_bytes, mutate_lines("|"), mutate_lines("\t"), mutate_lines("\t"))
    return {
        "Criteo text": Format([home / "day_0"], both, [_CRITEO]),
        "gzip": Format([home / "day_0.gz"], mutate_bytes, [_CRITEO]),
        "zstandard": Format([home / "day_0.zst", home / "binary.zst"], mutate_bytes, [_CRITEO]),
        "MLPerf binary": Format([home / "binary"], mutate_bytes, [_CRITEO]),
        "CSV": Format([home / "log.csv"], csv, [_NAMED]),
        "Parquet": Format(sorted(home.glob("*.parquet")), mutate_bytes, [_NAMED]),
        "schema": Format(
            [home / "schema.json"], js, [(*_PREPROCESS, "--input={home}/log.csv", "--schema={input}")]
        ),
        "arrays": Format([home / "arrays"], arrays, [report, train], "*.npy"),
        "bags": Format([home / "bags"], mutate_bytes, [report, train], "*.npz"),
        "prepared": Format(
            [home / "prepared"], js,
            [(*_NAMED[:-2], "--input={home}/log.csv", "--schema={home}/schema.json", "--grow={input}"),
             report, train],
            "metadata.json",
        ),
        "vocabularies": Format(
            [home / "prepared"], mutate_bytes,
            [(*_NAMED[:-2], "--input={home}/log.csv", "--schema={home}/schema.json", "--grow={input}"),
             (*_DLRM, "predict", "--checkpoint={home}/run/checkpoints/00000001",
              "--preprocessing={input}", "--tables=C1,C2", "--tables_output={out}")],
            "vocabularies/*",
        ),
        "checkpoint metadata": Format([run], js, restore, "checkpoints/*/metadata.json"),
        "checkpoint files": Format([run], mutate_bytes, restore, "checkpoints/*/*/**/*"),
        "run files": Format([run], js, [evaluate, predict], "*/metadata.json"),
        "metrics": Format(
            [run], one_of(mutate_bytes, mutate_lines(",")), [(*evaluate, "--eval_only"), evaluate], "*.jsonl"
        ),
        "warm start": Format(
            [home / "tables"], arrays,
            [(*_DLRM, "train", "--data={home}/prepared", "--workdir={out}-run", *TINY,
              "--warm_start={input}", "--warm_start_names=C1,C2")],
            "*.npy",
        ),
        "plan": Format(
            [home / "plan.json"], js, [(*_DLRM, "plan", "--preset=small", "--mesh=1x2", "--plan={input}")]
        ),
        "profile": Format(
            [home / "profile.json"], js,
            [(*_DLRM, "generate", "--output={out}", "--examples=20", "--profile={input}")],
        ),
        "trace": Format(
            [home / "trace.txt"], csv,
            [(*_DLRM, "generate", "--output={out}", "--examples=20", "--trace={input}")],
        ),
        "MovieLens 100K": Format([home / "ml-100k"], items, movielens, "u.*"),
        "MovieLens latest": Format([home / "ml-latest"], csv, movielens, "*.csv"),
    }  # fmt: skip


def _succeed(ended: forks.Ended) -> None:
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
        ("day_0.zst", zstandard.compress(text)),
        ("binary", binary),
        ("binary.zst", zstandard.compress(binary)),
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
        bags = {"0": numbers[:, 14:17], "1": numbers[:, 17:18]}
        np.savez(home / "bags" / f"day_{day}_sparse_multi_hot.npz", **bags)
    ratings = [(i % 5 + 1, i * 7 % 11 + 1, i % 5 + 1, 1000 + i) for i in range(_ROWS)]
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
    days = [datetime.datetime(2026, 11, 25 + i // 30) for i in range(_ROWS)]
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
