"""How long the main job takes from the command to its first training step."""

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
    """Starts the main job twice and stops it when it has kept its first loss.

    Its data are generated and its tables initialized, as for any run without --data.

    Args:
        arguments: its flags.

    Returns:
        seconds ``"cold"``, with no compiled program in the cache, and ``"warm"``, with all.

    Raises:
        UserError: the job ended before, with what it said.
    """
    with tempfile.TemporaryDirectory() as directory:
        cache = Path(directory) / "cache"
        found = {}
        for name in ("cold", "warm"):
            found[name] = _seconds(arguments, Path(directory) / name, cache)
        return found


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
