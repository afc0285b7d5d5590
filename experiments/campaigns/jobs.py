"""Small things to do: training runs and a preparation of logs, each over in seconds."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from dlrm_jax.files import replacing, write_json
from experiments.campaigns import harness
from experiments.campaigns.bits import bits

_GENERATED = ("--table_rows=7,300,40", "--dense_features=2", "--examples=4000")
_MODEL = (
    "--embedding_dim=4",
    "--bottom_mlp=4",
    "--top_mlp=4,1",
    "--batch_size=64",
    "--evaluation_batch_size=512",
    "--steps=40",
    "--log_every=1",
    "--eval_every=10",
    "--checkpoint_every=5",
)
_DAYS, _ROWS = 3, 3000
_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Job:
    """A command that makes a directory, and resumes if it is run again.

    Attributes:
        arguments: arguments of Python, without the directory.
        flag: flag that names the directory.
        home: directory of its caches.
    """

    arguments: tuple[str, ...]
    flag: str
    home: Path

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables. Compiled programs are kept, and native kernels aren't used."""
        return {
            "XDG_CACHE_HOME": str(self.home),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def command(self, directory: Path) -> list[str]:
        """The arguments of Python that make a directory."""
        return [*self.arguments, f"{self.flag}={directory}"]

    def run(self, directory: Path) -> harness.Ended:
        """Runs it to its end."""
        return harness.run(self.command(directory), self.variables)

    def unbroken(self, directory: Path) -> tuple[dict[str, str], float]:
        """The bits of a run that nothing disturbs, and its seconds once everything is compiled.

        Raises:
            RuntimeError: it failed.
        """
        self._succeed(directory.with_name(f"{directory.name}-first"))
        ended = self._succeed(directory)
        return bits(directory), ended.seconds

    def _succeed(self, directory: Path) -> harness.Ended:
        ended = self.run(directory)
        if ended.outcome != "done":
            raise RuntimeError(f"{' '.join(self.command(directory))}: {ended}\n{ended.stderr}")
        return ended


def training(scratch: Path, *flags: str, data: Path | None = None) -> Job:
    """A run of 40 steps with 8 checkpoints, with these flags besides its own.

    Args:
        scratch: directory for its caches.
        flags: further flags.
        data: logs or a directory of arrays; None for generated examples.
    """
    of_data = (f"--data={data}",) if data else _GENERATED
    arguments = ("-m", "dlrm_jax", "train", *_MODEL, *of_data, *flags)
    return Job(arguments, "--workdir", scratch / "home")


def streaming(segments: Path, scratch: Path, *flags: str) -> Job:
    """A run of 40 steps on the segments of `write_segments`, with 8 checkpoints.

    Args:
        segments: folder of segments, beside which there is their schema.
        scratch: directory for its caches.
        flags: further flags.
    """
    given = (f"--stream={segments}", f"--schema={segments.parent / 'schema.json'}", "--mesh=1x2")
    model = ("--table_rows=300", "--embedding_dim=4", "--bottom_mlp=4", "--top_mlp=4,1")
    batches = (f"--batch_size={_BATCH}", "--log_every=1", f"--stream_window={3 * _BATCH}")
    saved = ("--checkpoint_every=5", "--stream_checkpoint_seconds=0", "--stream_idle_seconds=0.01")
    arguments = ("-m", "dlrm_jax", "train", *given, *model, *batches, *saved, *flags)
    return Job(arguments, "--workdir", scratch / "home")


def write_segments(scratch: Path) -> Path:
    """A folder of segments of 40 batches in all, whose borders aren't those of batches."""
    directory, rng = scratch / "segments", np.random.default_rng(0)
    directory.mkdir()
    write_json(scratch / "schema.json", {"label": "y", "categorical": ["a", "b"], "dense": ["x"]})
    cuts = [0, *sorted(rng.choice(40 * _BATCH, 6, replace=False).tolist()), 40 * _BATCH]
    for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
        count = stop - start
        rows = pl.DataFrame(
            {
                "y": rng.integers(0, 2, count),
                "a": rng.integers(0, 500, count),
                "b": rng.integers(0, 20, count).astype(str),
                "x": rng.random(count),
            }
        )
        with replacing(directory / f"{number:03d}.parquet") as path:
            rows.write_parquet(path)
    return directory


def preparation(logs: Sequence[Path], scratch: Path, *flags: str) -> Job:
    """A preparation of logs, with these flags besides its own."""
    names = ",".join(map(str, logs))
    arguments = ("-m", "dlrm_jax", "preprocess", f"--input={names}", *flags)
    return Job(arguments, "--output", scratch / "home")


def write_logs(scratch: Path, seed: int = 0) -> list[Path]:
    """Files in Criteo's form, one for each day.

    Raises:
        RuntimeError: they couldn't be written.
    """
    directory = scratch / f"logs-{seed}"
    rows = ",".join(["7", "300", *["40"] * 24])
    ended = harness.run(
        ["-m", "dlrm_jax", "generate", f"--output={directory}", f"--examples={_ROWS}",
         f"--days={_DAYS}", f"--seed={seed}", f"--table_rows={rows}"]
    )  # fmt: skip
    if ended.outcome != "done":
        raise RuntimeError(f"cannot generate logs: {ended}\n{ended.stderr}")
    return sorted(directory.iterdir())
