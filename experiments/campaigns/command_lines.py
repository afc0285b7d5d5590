"""Random command lines of all commands: good flags with good and odd values, and nonsense."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlrm_jax.cli.main import COMMANDS
from experiments.campaigns import forks
from experiments.campaigns.good import TINY, Good
from experiments.campaigns.mutations import ODD_TEXTS

_TABLES = ("--table_rows=7,30", "--examples=200", "--dense_features=2", *TINY)
_COMPILED = ("--table_rows=7,30", "--dense_features=2", "--embedding_dim=4", "--bottom_mlp=4",
             "--top_mlp=4,1", "--batch_size=8")  # fmt: skip
BASES = {
    "train": ("--workdir={directory}/run", *_TABLES),
    "search": ("--output={directory}/out", "--space=learning_rate=0.1..1:log", "--trials=1",
               *_TABLES),
    "days": ("--input={good}/plain.parquet", "--schema={good}/schema.json",
             "--workdir={directory}/run", *TINY),
    "preprocess": ("--input={good}/day_0", "--output={directory}/out"),
    "join": ("--rows={good}/arrays", "--events={good}/bags", "--output={directory}/joined",
             "--id=a", "--timestamp=t", "--label=y", "--seconds=9", "--idle_seconds=0.1"),
    "report": ("--data={good}/arrays",),
    "generate": ("--output={directory}/out", "--examples=20"),
    "predict": ("--checkpoint={good}/run/checkpoints/00000001", "--data={good}/log.csv",
                "--output={directory}/out.csv", "--batch_size=8"),
    "evaluate": ("--checkpoint={good}/run/checkpoints/00000001", "--data={good}/log.csv",
                 "--batch_size=8"),
    "export": ("--run={good}/run", "--output={directory}/out"),
    "verify": ("--artifact={good}/artifact",),
    "serve": ("--artifact={good}/artifact",),
    "convert": ("--checkpoint={good}/run", "--format=torchrec",
                "--output={directory}/out.safetensors"),
    "tables": ("--run={good}/run",),
    "prune": ("--run={good}/run", "--min_count=2", "--output={directory}/out"),
    "plan": ("--preset=small", "--mesh=1x2"),
    "compile": ("--preset=small", "--mesh=1x2", *_COMPILED),
    "doctor": (),
}  # fmt: skip
_LAST = {"serve": ("--host=192.0.2.1",)}
"""Flags that nothing replaces. No machine has this address: a server starts, and ends there."""
_PATHS = (
    "{good}/day_0", "{good}/day_0.gz", "{good}/binary", "{good}/log.csv", "{good}/plain.parquet",
    "{good}/schema.json", "{good}/plan.json", "{good}/profile.json", "{good}/trace.txt",
    "{good}/run", "{good}/artifact",
    "{good}/run/checkpoints/00000001", "{good}/run/checkpoints", "{good}/prepared",
    "{good}/arrays", "{good}/bags",
    "{good}/tables", "{good}", "{directory}/x", "{directory}/x.csv", "{directory}/x.parquet",
    "{directory}/x.png",
    "{directory}/x.gz", "{directory}/y/z", "{good}/day_0/x", "{good}/day_0,{good}/day_0.gz",
)  # fmt: skip
_WORDS = (
    "C1", "C2=C1", "C1=row_wise", "C1=sgd:0.1", "C1=table_wise:9", "C1=row_wise:0-9", "C9=x",
    "shop", "bottom",
    "top.layers.0", "dcn_v2", "dlrm", "deepfm", "x:y", "os:path", "builtins:int", "layers=3",
    "rank=x", "adam", "same", "loss=bce|mse", "eps=0..1,batch_size=8|9", "model_options.rank=1..2",
)  # fmt: skip
_MESHES = (
    "1x1",
    "2x1",
    "1x2",
    "2x2",
    "0x1",
    "-1x1",
    "1x1x1",
    "x",
    "1x",
    "1",
    "9999999999x1",
    "1*1",
)
_NUMBERS = ("0", "1", "2", "3", "8", "8,4", "4,1", "1,1")
_HUGE = (str(2**31), str(2**63), str(10**30), "9" * 400)
_NONSENSE = (
    "--", "-", "---x", "--=", "--=x", "--nosuch", "--nosuch=1", "x", "--help", "--helpfull",
    "-h", "-1",
    "--flagfile=/proc/nope", "--flagfile=", "--undefok=x", "--noworkdir", "--nodata=1", "é",
    "--é=1", "",
)  # fmt: skip
# Large values would be taken, and then take time and memory.
_COSTLY = ("examples", "days", "steps", "epochs", "table_rows", "embedding_dim", "bottom_mlp",
           "top_mlp", "trials",
           "bag_lengths", "multi_hot_sizes", "evaluation_batch_size", "batch_size")  # fmt: skip


class CommandLines:
    """A source of command lines.

    Args:
        good: inputs that they may name; all are made.
    """

    def __init__(self, good: Good):
        self._good = good.home
        for made in ("parquet", "tables", "artifact", "plan", "profile"):
            getattr(good, made)
        self._flags: dict[str, list[dict[str, Any]]] = {}
        for command in COMMANDS:
            path = good.home / f"flags-{command}.json"
            write = functools.partial(_write_flags, command, path)
            good.succeed(forks.call(write, good.home, good.variables))
            self._flags[command] = json.loads(path.read_text())

    def write(self, directory: Path, chance: random.Random) -> list[str]:
        """A command line whose files are made in a directory, besides the good ones."""
        if chance.random() < 0.02:
            return ["dlrm_jax", chance.choice(("", "trian", "--help", "-x", "é", *ODD_TEXTS))]
        command = chance.choice(list(COMMANDS))
        line = [x for x in BASES[command] if x in TINY or x in _TABLES or chance.random() > 0.1]
        flagless = not self._flags[command]  # such as doctor
        for _ in range(0 if flagless else chance.choice((0, 1, 1, 2, 3, 5))):
            line += self._flag(chance.choice(self._flags[command]), chance)
        if chance.random() < 0.1:
            line.insert(chance.randint(0, len(line)), chance.choice(_NONSENSE))
        line += _LAST.get(command, ())
        words = {"good": self._good, "directory": directory}
        named = [x.format_map(words) if "{good}" in x or "{directory}" in x else x for x in line]
        return ["dlrm_jax", command, *(x.replace("\x00", "") for x in named)]

    def _flag(self, flag: Mapping[str, Any], chance: random.Random) -> list[str]:
        """A flag with a value, in one of the ways to write it."""
        name = flag["name"]
        if name in ("processes", "jobs"):  # more are other programs, which nothing here observes
            return [f"--{name}={chance.choice(('0', '-1', 'x', '', '1'))}"]
        if chance.random() < 0.05:
            return [f"--{name}"]
        if flag["boolean"] and chance.random() < 0.5:
            return [chance.choice((f"--{name}", f"--no{name}", f"--no{name}=x"))]
        value = chance.choice(self._values(flag, chance))
        return [f"--{name}", value] if chance.random() < 0.1 else [f"--{name}={value}"]

    def _values(self, flag: Mapping[str, Any], chance: random.Random) -> tuple[str, ...]:
        """Values to choose from: good ones two thirds of the time."""
        if flag["name"] == "mesh":
            return _MESHES
        if chance.random() < 0.35:
            odd = ODD_TEXTS if flag["name"] in _COSTLY else ODD_TEXTS + _HUGE
            return tuple(x for x in odd if flag["name"] not in _COSTLY or not x.isdecimal())
        if flag["values"]:
            return tuple(flag["values"])
        if flag["boolean"]:
            return "true", "false", "1"
        return _NUMBERS if flag["number"] else _PATHS + _WORDS


def _write_flags(command: str, path: Path) -> None:
    """Writes the flags of a command as JSON: it defines them when it is imported."""
    import importlib

    from absl import flags

    from dlrm_jax.cli.flags import Numbers, own_flags

    importlib.import_module(f"dlrm_jax.cli.{command}")
    numeric = (flags.IntegerParser, flags.FloatParser, Numbers)
    described = [
        {"name": x.name, "boolean": bool(x.boolean), "number": isinstance(x.parser, numeric),
         "values": list(getattr(x.parser, "enum_values", None) or [])}
        for x in own_flags()
    ]  # fmt: skip
    path.write_text(json.dumps(described))
