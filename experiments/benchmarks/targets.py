"""Compiles the train steps of presets for GPUs and TPUs, and keeps what is read of the programs.

    python -m experiments.benchmarks.targets --directory=docs/results/targets
    python -m experiments.benchmarks.targets --directory=docs/results/targets --only=kaggle

No device is needed, but both compilers (``docs/targets.md``). Prints a line for each preset, target
and mesh: GiB of arguments and of temporaries on one device, and the temporaries' share of its
memory; kernels of a step, and of a turn of all loops; scatters of floats whose places may repeat,
sorts, products of float32 with less precision, arrays as large as a table; MB of all collectives.

Each program is a file of the directory, in the format of ``python -m dlrm_jax compile --json``. A
file that is there isn't compiled again. If the command is interrupted, run it again to resume;
delete files of programs that have changed. ``tests/experiments/test_kept_targets.py`` compares them
with what is compiled now.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from dlrm_jax.console import telling_time
from dlrm_jax.embedding.planning.devices import DEVICES
from dlrm_jax.errors import UserError
from dlrm_jax.files import read_json
from dlrm_jax.targets import lacks, parse_target
from dlrm_jax.text_table import text_table

flags.DEFINE_string(
    "directory", "docs/results/targets", "Directory of the programs' files; such as targets."
)
flags.DEFINE_list("only", [], "Presets to compile, instead of all; such as kaggle,profile.")


class Case(NamedTuple):
    """A train step.

    Attributes:
        preset: name of its configuration.
        target: devices, see `dlrm_jax.targets.parse_target`.
        mesh: data-parallel groups x model shards.
        batch_size: samples of a batch, over all devices.
    """

    preset: str
    target: str
    mesh: str
    batch_size: int

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.preset}-{self.target.replace(':', '-')}.json"

    @property
    def flags(self) -> list[str]:
        """The arguments of ``python -m dlrm_jax compile``."""
        return [f"--{name}={value}" for name, value in self._asdict().items()]


_A_DEVICE = 2048  # samples of a batch
_LONG_BAGS_OF_A_TPU = 256  # of `profile`: 800 ids a sample, of which XLA makes arrays
_MESHES = {
    "h100:1": "1x1", "h100:8": "2x4", "tpu_v5e:8": "2x4", "tpu_v5e:8x16": "8x16",
    "tpu_v5p:8": "2x4", "tpu_v5p:4x4x8": "8x16",
}  # fmt: skip
_DEVICES = {"1x1": 1, "2x4": 8, "8x16": 128}
CASES = (
    Case("small", "h100:4", "2x2", 2048),
    Case("small", "tpu_v5e:4", "2x2", 2048),
    *(
        Case(preset, target, mesh, _A_DEVICE * _DEVICES[mesh])
        for preset in ("kaggle", "terabyte")
        for target, mesh in _MESHES.items()
    ),
    *(
        Case(
            "profile",
            target,
            mesh,
            (_A_DEVICE if target.startswith("h100") else _LONG_BAGS_OF_A_TPU) * _DEVICES[mesh],
        )
        for target, mesh in _MESHES.items()
    ),
    # MLPerf's tables need 97 GiB, and its batch is fixed.
    Case("mlperf_v2", "h100:8", "1x8", 65_536),
    Case("mlperf_v2", "tpu_v5e:8x16", "8x16", 65_536),
    Case("mlperf_v2", "tpu_v5p:8", "1x8", 65_536),
    Case("mlperf_v2", "tpu_v5p:4x4x8", "8x16", 65_536),
)
"""The train steps that are kept."""


def compile_case(case: Case, path: Path) -> None:
    """Compiles a step and writes what is read of it.

    Raises:
        UserError: the command failed.
    """
    command = [sys.executable, "-m", "dlrm_jax", "compile", *case.flags, f"--json={path}"]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    if result.returncode:
        raise UserError(f"python {' '.join(command[1:])}: {result.stderr[-2000:].strip()}")


def figures(found: Mapping[str, Any]) -> dict[str, int]:
    """The numbers of a program that should be small.

    Args:
        found: content of its file.
    """
    scatters, kernels = found["scatters"], found["kernels"]
    return {
        "temporaries": found["memory"]["temporaries"],
        "kernels": sum(kernels["once"].values()),
        "in loops": sum(kernels["in_loops"].values()),
        "repeating scatters": sum(x["number"] for x in scatters if x["may_repeat"]),
        "sorts": found["operations"].get("sort", 0),
        "imprecise products": sum(x["number"] for x in found["products"] if x["loses"]),
        "as large as a table": len(found["as_large_as_a_table"]),
    }


def regressions(kept: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What has become more in a program.

    Temporaries may grow by 5 %, kernels by 2 %: XLA's fusions follow small changes.

    Args:
        kept: content of its file before.
        found: content of its file now.
    """
    slack = {"temporaries": 1.05, "kernels": 1.02, "in loops": 1.02}
    before, now = figures(kept), figures(found)
    return [
        f"{name}: {now[name]:,} instead of {before[name]:,}"
        for name in before
        if now[name] > before[name] * slack.get(name, 1.0)
    ]


def row_of(case: Case, found: Mapping[str, Any]) -> list[str]:
    """A line of the table."""
    memory, numbers = found["memory"], figures(found)
    share = memory["temporaries"] / DEVICES[parse_target(case.target).device].memory
    return [
        case.preset, case.target, case.mesh, f"{case.batch_size:,}",
        f"{memory['arguments'] / 2**30:.2f}", f"{memory['temporaries'] / 2**30:.2f}",
        f"{share:.1%}", *(f"{n:,}" for name, n in numbers.items() if name != "temporaries"),
        f"{sum(found['compiled_bytes'].values()) / 1e6:.1f}",
    ]  # fmt: skip


def main() -> None:
    """Compiles what isn't there yet, and prints all."""
    presets = {case.preset for case in CASES}
    if unknown := sorted(set(FLAGS.only) - presets):
        raise UserError(f"--only: expected some of {', '.join(sorted(presets))}, got {unknown[0]}")
    directory = Path(FLAGS.directory)
    if not directory.is_dir():
        raise UserError(f"--directory: expected a directory that is there, got {directory}")
    rows = []
    for case in CASES:
        if FLAGS.only and case.preset not in FLAGS.only:
            continue
        path = directory / case.file
        if not path.exists():
            if missing := lacks(parse_target(case.target).device):
                raise UserError(f"{case.target}: {missing}")
            with telling_time(f"compiling {case.preset} for {case.target}"):
                compile_case(case, path)
        try:
            rows.append(row_of(case, read_json(path)))
        except (ValueError, KeyError, TypeError, IsADirectoryError) as error:
            raise UserError(
                f"{path}: expected what `compile --json` writes, got {error!r}; move it away, and "
                f"run the command again"
            ) from error
    header = (
        "preset", "target", "mesh", "batch", "arguments", "temporaries", "of memory", "kernels",
        "in loops", "repeating scatters", "sorts", "imprecise products", "as large as a table",
        "MB sent",
    )  # fmt: skip
    print(text_table(header, rows, left=(0, 1, 2)))


if __name__ == "__main__":
    run(main)
