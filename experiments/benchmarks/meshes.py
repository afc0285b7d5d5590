"""Times the train step on meshes of emulated CPU devices against one device, in turn.

    python -m experiments.benchmarks.meshes --preset=kaggle

For each batch size, optimizer of the tables and type of the dense model's products, a line a mesh:
the median step, the median of the rounds' ratios to one device and the quartiles of these; the
processor time of a step, of all threads, and its ratio; and the latency from core to core (see
`experiments.benchmarks.cores`). The ratio of processor times is that of the work: it leaves out
how long devices wait for each other, and means something beside other programs, too. The one device
is the first of as many as the largest mesh has; the others idle. ``--json`` prints a list of
objects.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from absl import flags

from dlrm_jax.cli.config_flags import OF_WHOLE_RUNS, define_run_flags, with_flags
from dlrm_jax.cli.flags import FLAGS, define_numbers
from dlrm_jax.cli.run import run
from dlrm_jax.cli.start import start
from dlrm_jax.config import Config
from dlrm_jax.mesh import check_batch_size, make_mesh, parse_mesh
from dlrm_jax.presets import preset
from dlrm_jax.text_table import text_table
from dlrm_jax.training.build import make_learner
from experiments.benchmarks.cores import extremes, round_trip_us
from experiments.benchmarks.steps import BATCHES, Steps
from experiments.benchmarks.timing import in_turn, ratio_quartiles

_LISTS = {
    "mesh": "--meshes takes its place",
    "batch_size": "--batch_sizes takes its place",
    "optimizer": "--optimizers takes its place",
    "compute_dtype": "--compute_dtypes takes its place",
}
_ONE = "1x1"

define_run_flags(
    "kaggle", _LISTS | dict.fromkeys(OF_WHOLE_RUNS, "steps on generated batches are timed")
)
flags.DEFINE_list("meshes", ["2x4", "1x8"], "Meshes to compare with 1x1; such as 2x4,1x8.")
define_numbers("batch_sizes", (2048, 8192), "Batch sizes; such as 2048,8192.", low=1)
flags.DEFINE_list("optimizers", ["sgd", "rowwise_adagrad"], "Optimizers; such as adam.")
flags.DEFINE_list(
    "compute_dtypes",
    ["float32", "bfloat16"],
    "Types of products; such as float32.",
)
flags.DEFINE_integer("rounds", 7, "Rounds in which each step is timed; such as 30.", 1)
flags.DEFINE_integer("samples_per_round", 16384, "Samples of a step's turn; such as 65536.", 1)
flags.DEFINE_bool("json", False, "Prints a list of JSON objects.")


def compare(config: Config, meshes: Sequence[str]) -> list[dict[str, Any]]:
    """The times of a config on one device and on each of the meshes."""
    steps = {name: Steps(config, make_learner(config, make_mesh(name))) for name in (_ONE, *meshes)}
    for each in steps.values():
        each.run(BATCHES)
    count = -(-FLAGS.samples_per_round // config.batch_size)
    runs: dict[str, Any] = {"round_trips": round_trip_us}
    for name, each in steps.items():
        # The first step after another program isn't timed.
        runs[f"{name} first"] = partial(each.run, 1)
        runs[name] = partial(_wall_and_processor, each, count)
    rounds = in_turn(runs, FLAGS.rounds)
    found = []
    times = {name: [wall for wall, _ in rounds[name]] for name in steps}
    processor = {name: [used for _, used in rounds[name]] for name in steps}
    for name in steps:
        lower, ratio, upper = ratio_quartiles(times[name], times[_ONE])
        _, processor_ratio, _ = ratio_quartiles(processor[name], processor[_ONE])
        found.append(
            {
                "batch_size": config.batch_size,
                "optimizer": config.optimizer,
                "compute_dtype": config.compute_dtype,
                "mesh": name,
                "median_ms": 1e3 * statistics.median(times[name]),
                "ratio": ratio,
                "ratio_quartiles": [lower, upper],
                "processor_ms": 1e3 * statistics.median(processor[name]),
                "processor_ratio": processor_ratio,
                "core_round_trip_us": extremes(rounds["round_trips"]),
            }
        )
    return found


def _wall_and_processor(steps: Steps, count: int) -> tuple[float, float]:
    """Seconds of a step, and processor seconds of all threads."""
    begun = time.process_time()
    seconds = steps.run(count)
    return seconds, (time.process_time() - begun) / count


def main() -> None:
    """Compares the meshes for each batch size, optimizer and type of products."""
    shapes = [parse_mesh(mesh, "--meshes") for mesh in FLAGS.meshes]
    largest = max(shapes, key=lambda shape: shape[0] * shape[1])
    start("x".join(map(str, largest)), emulate=True)
    given = with_flags(preset(FLAGS.preset))
    given = dataclasses.replace(given, zipf_exponent=given.zipf_exponent or 1.05)
    for mesh, size in itertools.product(FLAGS.meshes, FLAGS.batch_sizes):
        check_batch_size(make_mesh(mesh), "batch_sizes", size)
    found = []
    for size, optimizer, dtype in itertools.product(
        FLAGS.batch_sizes, FLAGS.optimizers, FLAGS.compute_dtypes
    ):
        config = dataclasses.replace(
            given, batch_size=size, optimizer=optimizer, compute_dtype=dtype
        )
        found += compare(config, FLAGS.meshes)
        gc.collect()  # the tables of one comparison at a time
    if FLAGS.json:
        print(json.dumps(found, indent=1))
    else:
        print(text_table(list(found[0]), [[*map(_short, row.values())] for row in found]))


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return " to ".join(f"{x:.2f}" for x in value.values())
    if isinstance(value, list):
        return " to ".join(map(_short, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run(main)
