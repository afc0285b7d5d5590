"""Times `dlrm_jax train` from the command to its first training step."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from dlrm_jax.errors import UserError


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
    command += [f"--workdir={workdir}", "--log_every=1", "--eval_every=0", "--checkpoint_every=0"]
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
