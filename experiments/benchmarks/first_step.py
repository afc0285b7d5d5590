"""Times `dlrm_jax train` from the command to its first training step.

    python -m experiments.benchmarks.first_step --preset=small --batch_size=256

It takes the flags of a config, and prints the seconds without a compiled program in the cache and
with all as one JSON object.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from dlrm_jax.cli.config_flags import define_run_flags, overridden
from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from dlrm_jax.config import FIELD_TYPES
from dlrm_jax.errors import UserError
from dlrm_jax.presets import preset

_SET = ("log_every", "eval_every", "checkpoint_every")


def seconds_to_first_step(arguments: Sequence[str]) -> dict[str, float]:
    """Starts training twice and stops it after its first logged loss.

    It generates data and initializes tables, as any run without --data. The result is the seconds
    ``"cold"``, without a compiled program in the cache, and ``"warm"``, with all.

    Raises:
        UserError: the command ended earlier; the message has its output.
    """
    with tempfile.TemporaryDirectory() as directory:
        cache = Path(directory) / "cache"
        seconds = {}
        for name in ("cold", "warm"):
            seconds[name] = _seconds(arguments, Path(directory) / name, cache)
        return seconds


def _seconds(arguments: Sequence[str], workdir: Path, cache: Path) -> float:
    command = [sys.executable, "-m", "dlrm_jax", "train", *arguments]
    command += [f"--workdir={workdir}", *(f"--{x}={int(x == 'log_every')}" for x in _SET)]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    losses = workdir / "metrics.jsonl"
    with tempfile.TemporaryFile("w+") as output:
        begun = time.perf_counter()
        job = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            while not (losses.exists() and losses.stat().st_size):
                if job.poll() is not None:
                    output.seek(0)
                    raise UserError(f"{' '.join(command)} ended: {output.read().strip()}")
                time.sleep(0.01)
            return time.perf_counter() - begun
        finally:
            job.kill()
            job.wait()


def run_flags() -> list[str]:
    """The flags of `dlrm_jax train` that the command line has; train has another default preset."""
    names = ["preset", "mesh", "emulate", *(name for name in FIELD_TYPES if FLAGS[name].present)]
    return [FLAGS[name].serialize() for name in names]


def main() -> None:
    """Times both starts."""
    overridden(preset(FLAGS.preset))  # refuses what train would, and what it is not given
    print(json.dumps(seconds_to_first_step(run_flags()), indent=1))


if __name__ == "__main__":
    define_run_flags("small", dict.fromkeys(_SET, "the first step ends the run"))
    run(main)
