"""Formats of inputs: good ones, how they are changed, and the commands that read them."""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.campaigns.good import TINY, Good
from experiments.campaigns.mutations import (
    Mutation,
    mutate_bytes,
    mutate_json,
    mutate_lines,
    mutate_npy,
    one_of,
)

LOADED = "can't be split evenly"
"""A part of the error of commands that end when their data are loaded."""

_WORDS = ("stop or skip",)
_PREPROCESS = ("dlrm_jax", "preprocess", "--output={out}", "--on_bad_line={stop or skip}")
_CRITEO = (*_PREPROCESS, "--input={input}")
_NAMED = (*_PREPROCESS, "--input={input}", "--schema={home}/schema.json")
_GROW = (*_PREPROCESS, "--input={home}/log.csv", "--schema={home}/schema.json", "--grow={input}")
_REPORT = ("dlrm_jax", "report", "--data={input}")
_REPORT_RUN = ("dlrm_jax", "report", "--run={input}", "--data={home}/prepared", "--batch_size=8",
               "--permutations=1")  # fmt: skip
_TRAIN = ("dlrm_jax", "train", "--data={input}", "--workdir={out}-run", *TINY)
_RESUME = ("dlrm_jax", "train", "--data={home}/prepared", "--workdir={input}", *TINY)
_EVALUATE = (*(x for x in _RESUME if not x.startswith("--steps=")), "--eval_only")
_PREDICT = ("dlrm_jax", "predict", "--checkpoint={input}/checkpoints/00000001",
            "--output={out}.csv",
            "--data={home}/log.csv", "--batch_size=8")  # fmt: skip
_TABLES = ("dlrm_jax", "predict", "--checkpoint={input}/checkpoints/00000001",
           "--tables=shop,viewed", "--tables_output={out}")  # fmt: skip
_VALUES = ("dlrm_jax", "predict", "--checkpoint={home}/run/checkpoints/00000001",
           "--tables=shop,viewed", "--tables_output={out}", "--preprocessing={input}")  # fmt: skip
_WARM = ("dlrm_jax", "train", "--data={home}/prepared", "--workdir={out}-run", *TINY,
         "--warm_start={input}", "--warm_start_names=shop,viewed")  # fmt: skip
_CONTINUE = ("dlrm_jax", "train", "--data={home}/prepared", "--workdir={out}-run", *TINY,
             "--continue_from={input}")  # fmt: skip
_PREDICT_EXPORTED = ("dlrm_jax", "predict", "--checkpoint={input}", "--output={out}.csv",
                     "--data={home}/log.csv", "--batch_size=8")  # fmt: skip
_GENERATE = ("dlrm_jax", "generate", "--output={out}", "--examples=20")
_PLAN = ("dlrm_jax", "plan", "--preset=small", "--mesh=1x2", "--plan={input}")
# Ends when the data are loaded: a batch of 8 can't be split over three devices.
_LOAD = ("experiments.movielens", "--data={input}", "--models=dlrm", "--workdir={out}-run",
         "--batch_size=8", "--mesh=3x1")  # fmt: skip
_MOVIELENS = (_LOAD, (*_LOAD, "--history=5"), (*_LOAD, "--task=ranking", "--features=user,item"))
_RESTORE = (_TABLES, _TABLES, _EVALUATE, _RESUME, _PREDICT, _CONTINUE, _REPORT_RUN)

_tabs = one_of(mutate_bytes, mutate_lines("\t"), mutate_lines("\t"))
_commas = one_of(mutate_bytes, mutate_lines(","), mutate_lines(","))
_bars = one_of(mutate_bytes, mutate_lines("|"), mutate_lines("\t"))
_json = one_of(mutate_json, mutate_json, mutate_json, mutate_bytes)
_npy = one_of(mutate_bytes, mutate_npy)


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
        words |= {choice: chance.choice(choice.split(" or ")) for choice in _WORDS}
        return [item.format_map(words) for item in command]


FORMATS: dict[str, Callable[[Good], Format]] = {
    "Criteo text": lambda good: Format([good.home / "day_0"], _tabs, [_CRITEO]),
    "gzip": lambda good: Format([good.home / "day_0.gz"], mutate_bytes, [_CRITEO]),
    "zstandard": lambda good: Format(
        [good.home / "day_0.zst", good.home / "binary.zst"], mutate_bytes, [_CRITEO]
    ),
    "MLPerf binary": lambda good: Format([good.home / "binary"], mutate_bytes, [_CRITEO]),
    "CSV": lambda good: Format([good.home / "log.csv"], _commas, [_NAMED]),
    "Parquet": lambda good: Format(good.parquet, mutate_bytes, [_NAMED]),
    "schema": lambda good: Format(
        [good.home / "schema.json"],
        _json,
        [(*_PREPROCESS, "--input={home}/log.csv", "--schema={input}")],
    ),
    "arrays": lambda good: Format([good.home / "arrays"], _npy, [_REPORT, _TRAIN], "*.npy"),
    "bags": lambda good: Format([good.home / "bags"], mutate_bytes, [_REPORT, _TRAIN], "*.npz"),
    "prepared": lambda good: Format(
        [good.prepared], _json, [_GROW, _REPORT, _TRAIN], "metadata.json"
    ),
    "vocabularies": lambda good: Format(
        [good.run.with_name("prepared")], mutate_bytes, [_GROW, _VALUES], "vocabularies/*"
    ),
    "checkpoint metadata": lambda good: Format(
        [good.run], _json, _RESTORE, "checkpoints/*/metadata.json"
    ),
    "checkpoint files": lambda good: Format(
        [good.run], mutate_bytes, _RESTORE, "checkpoints/*/*/**/*"
    ),
    "run files": lambda good: Format(
        [good.run], _json, [_RESUME, _PREDICT, _REPORT_RUN], "*/metadata.json"
    ),
    "summary": lambda good: Format([good.run], _json, [_REPORT_RUN], "summary.json"),
    "metrics": lambda good: Format(
        [good.run],
        one_of(mutate_bytes, mutate_lines(",")),
        [_EVALUATE, _RESUME, _REPORT_RUN],
        "*.jsonl",
    ),
    "warm start": lambda good: Format([good.tables], _npy, [_WARM], "*.npy"),
    "artifact": lambda good: Format([good.artifact], mutate_bytes, [_PREDICT_EXPORTED], "**/*"),
    "plan": lambda good: Format([good.plan], _json, [_PLAN]),
    "profile": lambda good: Format([good.profile], _json, [(*_GENERATE, "--profile={input}")]),
    "trace": lambda good: Format(
        [good.home / "trace.txt"], _commas, [(*_GENERATE, "--trace={input}")]
    ),
    "MovieLens 100K": lambda good: Format([good.home / "ml-100k"], _bars, _MOVIELENS, "u.*"),
    "MovieLens latest": lambda good: Format(
        [good.home / "ml-latest"], _commas, _MOVIELENS, "*.csv"
    ),
}
"""By name, functions that make good inputs where needed, and give the format."""
