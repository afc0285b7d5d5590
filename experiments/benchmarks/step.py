"""Times a training or prediction step, and measures the memory of a whole run.

    python -m experiments.benchmarks.step --preset=kaggle --mesh=2x4 --batch_size=2048

``--json`` prints one JSON object instead of lines. Times are medians of rounds of several steps;
``spread`` is the distance of the quartiles over the median. ``seconds_to_first_step`` is the time
of `dlrm_jax train` from the command on, with an empty compilation cache and with a full one.

``roofline_share`` is the least time that the machine needs (see `benchmarks.roofline`) over the
median; ``--torch_product`` has PyTorch's large products compete for the machine's speed, too.
``rows_ratio`` is the step's time over that of the same step on tables with a hundredth of the rows,
the two timed in turn: row-sparse updates make it about 1. With ``--against=1x1`` the step on
another mesh of the same devices is timed in turn, too: ``mesh_ratio`` is the first step's time over
the second's. ``core_round_trip_us``, measured before each round, helps to see whether two results
come from the same machine (see `experiments.benchmarks.cores`).

``peak_gib`` is the largest resident memory of initializing, training, saving and restoring;
``bound_gib`` is 1.15 times the bytes of tables and optimizer state on all devices, plus 0.7 GiB.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import flags

from dlrm_jax.cli.config_flags import OF_WHOLE_RUNS, define_run_flags, with_flags
from dlrm_jax.cli.flags import FLAGS, refuse
from dlrm_jax.cli.run import run
from dlrm_jax.cli.start import start
from dlrm_jax.config import Config
from dlrm_jax.files import cache_directory
from dlrm_jax.mesh import check_batch_size, make_mesh, parse_mesh
from dlrm_jax.presets import preset
from dlrm_jax.text_table import text_table
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.record import versions
from experiments.benchmarks import roofline
from experiments.benchmarks.cores import extremes, round_trip_us
from experiments.benchmarks.first_step import run_flags, seconds_to_first_step
from experiments.benchmarks.peers import lineup, products
from experiments.benchmarks.peers.problem import Precision
from experiments.benchmarks.steps import BATCHES, Steps
from experiments.benchmarks.timing import in_turn, peak_bytes, ratio_quartiles, summary

define_run_flags("kaggle", dict.fromkeys(OF_WHOLE_RUNS, "steps on generated batches are timed"))
flags.DEFINE_enum("mode", "train", ["train", "infer"], "Train steps or predictions.")
flags.DEFINE_enum("ids", "zipf", ["zipf", "uniform"], "Distribution of the ids of a table.")
flags.DEFINE_string("against", None, "Mesh to compare with, of no more devices; such as 1x1.")
flags.DEFINE_integer("rounds", 15, "Rounds in which each step is timed; such as 30.", 1)
flags.DEFINE_integer("steps_per_round", 10, "Steps timed together; such as 100.", 1)
flags.DEFINE_bool("first_step", True, "Also times `dlrm_jax train` up to its first step.")
flags.DEFINE_bool(
    "torch_product", False, "Also times PyTorch's large product; installs it on first use."
)
flags.DEFINE_bool("json", False, "Prints one JSON object.")

_FEWER = 100


def save_and_restore(learner: Learner, steps: Steps) -> None:
    """Saves the state and replaces it by the restored one, as a resumed run does."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoints = Checkpoints(Path(directory), {})
        checkpoints.save(learner, steps.state, {}, None)
        del steps.state
        gc.collect()  # saving has put the arrays into reference cycles
        steps.state = checkpoints.restore(learner, checkpoints.steps()[-1])


def with_fewer_rows(config: Config, learner: Learner) -> Steps:
    """Steps on tables with a hundredth of the rows, on the same shards."""
    with tempfile.TemporaryDirectory() as directory:
        plan = Path(directory) / "plan.json"
        plan.write_text(learner.collection.plan.to_json())
        fewer = dataclasses.replace(
            config,
            table_rows=tuple(-(-rows // _FEWER) for rows in config.table_rows),
            placements=(),
            plan=str(plan),
        )
        return Steps(fewer, make_learner(fewer, learner.mesh), FLAGS.mode == "train")


def config_of_flags() -> Config:
    """The config of the preset and the flags, each of which must have an effect."""
    if FLAGS.ids == "uniform":
        refuse(["zipf_exponent"], "with --ids=uniform")
    config = with_flags(preset(FLAGS.preset))
    exponent = 0.0 if FLAGS.ids == "uniform" else config.zipf_exponent or 1.05
    return dataclasses.replace(config, zipf_exponent=exponent)


def torch_seconds(dtype: str) -> float:
    """Seconds of PyTorch's product of matrices of `roofline.SIDE`."""
    precision: Precision = "bfloat16" if dtype == "bfloat16" else "float32"
    directory = cache_directory() / "peers"
    return products.large_by_torch(lineup.torch_large_product(directory, precision, roofline.SIDE))


def main() -> None:
    """Measures the first step and memory by themselves, then times the steps in turn."""
    against_shape = FLAGS.against and parse_mesh(FLAGS.against, "--against")
    mesh = start(FLAGS.mesh)
    config = config_of_flags()
    if against_shape:  # checked before the rest, which takes long
        against = make_mesh(against_shape)
        check_batch_size(against, "batch_size", config.batch_size, config.accumulation_steps)
    first_step = seconds_to_first_step(run_flags()) if FLAGS.first_step else None

    learner = make_learner(config, mesh)
    steps = Steps(config, learner, FLAGS.mode == "train")
    steps.run(BATCHES)
    if FLAGS.mode == "train":
        save_and_restore(learner, steps)
    peak = peak_bytes()
    nbytes = roofline.device_bytes((steps.state.embedding.tables, steps.state.embedding.slots))

    compared = {"steps": steps, "fewer_rows": with_fewer_rows(config, learner)}
    if FLAGS.against:
        learner_against = make_learner(config, make_mesh(FLAGS.against))
        compared["against"] = Steps(config, learner_against, FLAGS.mode == "train")
    for each in compared.values():
        each.run(BATCHES)
    runs: dict[str, Callable[[], Any]] = {
        "round_trips": round_trip_us,
        "first": lambda: steps.run(1),  # the first round after another program isn't timed
        **{name: partial(each.run, FLAGS.steps_per_round) for name, each in compared.items()},
    }
    times = in_turn(runs, FLAGS.rounds)

    machine = roofline.measure(
        config.embedding_dim,
        learner.collection.native,
        config.compute_dtype,
        torch_seconds(config.compute_dtype) if FLAGS.torch_product else math.inf,
    )
    work = steps.work(learner)
    seconds = statistics.median(times["steps"])
    results = {
        "preset": FLAGS.preset,
        "mode": FLAGS.mode,
        "mesh": FLAGS.mesh,
        "batch_size": config.batch_size,
        "optimizer": config.optimizer,
        "kernels": learner.kernels_in_use,
        "ids": FLAGS.ids,
        "zipf_exponent": config.zipf_exponent,
        "rows": sum(config.table_rows),
        **summary(times["steps"]),
        "examples_per_second": config.batch_size / seconds,
        **ratios(times),
        "step_gflop": work.flops / 1e9,
        "step_row_mib": work.row_bytes / 2**20,
        "core_round_trip_us": extremes(times["round_trips"]),
        "machine_gflops": machine.flops / 1e9,
        "machine_row_gib_per_second": machine.row_bytes / 2**30,
        "roofline_ms": 1e3 * machine.limit(work),
        "roofline_share": machine.limit(work) / seconds,
        "seconds_to_first_step": first_step,
        "tables_and_state_gib": nbytes / 2**30,
        "peak_gib": peak / 2**30,
        "bound_gib": 1.15 * nbytes / 2**30 + 0.7,
        "allocator": os.environ.get("GLIBC_TUNABLES"),
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
    }
    if FLAGS.json:
        print(json.dumps(results, indent=1))
    else:
        rows = [(name, _short(value)) for name, value in results.items()]
        print(text_table(("result", "value"), rows, left=(0, 1)))


def ratios(times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The medians of the rounds' ratios; the two timings of a round saw the same machine."""
    found = {"against": FLAGS.against} if "against" in times else {}
    for other, name in (("fewer_rows", "rows_ratio"), ("against", "mesh_ratio")):
        if other in times:
            found[f"{other}_median_ms"] = 1e3 * statistics.median(times[other])
            _, found[name], _ = ratio_quartiles(times["steps"], times[other])
    return found


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items())
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run(main)
