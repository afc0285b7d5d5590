"""Times the train step of the main job, and measures the memory of a whole run.

    python -m experiments.benchmark --preset=kaggle --mesh=2x4 --batch_size=2048

Prints one JSON object. ``rows_ratio`` is the step's time over that of the same step on tables
with a hundredth of the rows, the two timed in turn: row-sparse updates make it about 1.
With ``--against=1x1`` the step on another mesh of the same devices is timed in turn as well:
``mesh_ratio`` is the time of the former over that of the latter.
``peak_gib`` is the largest resident memory of initializing, training, saving and restoring;
``bound_gib`` is 1.25 times the bytes of tables and optimizer state on all devices, plus 1 GiB.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from dlrm_jax.config import Config, preset
from dlrm_jax.data.batches import TrainBatches
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import check_batch_size, make_mesh, parse_mesh
from dlrm_jax.training.build import generate_data, make_learner
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.step import make_train_step
from experiments.program import FLAGS, define_run_flags, run, start, versions, with_flags

define_run_flags(default_preset="kaggle")
flags.DEFINE_enum("ids", "zipf", ["zipf", "uniform"], "how the ids of a table are distributed")
flags.DEFINE_string("against", None, "another mesh, of no more devices, to compare with")
flags.DEFINE_integer("rounds", 15, "how often each of the steps is timed", lower_bound=1)
flags.DEFINE_integer("steps_per_round", 10, "steps timed together", lower_bound=1)

# Different batches, so that the rows of one aren't left in the cache for the next.
_BATCHES = 20
_FEWER = 100

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


class Steps:
    """A state, and steps that go on from it, on batches kept in memory.

    Args:
        config: of the data.
        learner: of the state.
    """

    def __init__(self, config: Config, learner: Learner):
        data = generate_data(config)
        batches = TrainBatches(data.train, config.batch_size, config.seed)
        self._batches = [learner.put(batches[i]) for i in range(_BATCHES)]
        self._step = make_train_step(learner)
        self.state = learner.init(config.seed)

    def run(self, count: int) -> float:
        """Runs some steps and returns the mean seconds of one."""
        begun = time.perf_counter()
        for i in range(count):
            self.state, loss = self._step(self.state, self._batches[i % _BATCHES])
            loss.block_until_ready()
        return (time.perf_counter() - begun) / count


def save_and_restore(learner: Learner, steps: Steps) -> None:
    """Replaces the state by what a checkpoint of it gives, as a resumed run would."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoints = Checkpoints(Path(directory), {})
        checkpoints.save(learner, steps.state, {}, None)
        del steps.state
        gc.collect()  # saving has put the arrays into reference cycles
        steps.state = checkpoints.restore(learner, checkpoints.steps()[-1])


def with_fewer_rows(config: Config, learner: Learner) -> Steps:
    """Steps on tables with a hundredth of the rows that lie where the whole ones do."""
    with tempfile.TemporaryDirectory() as directory:
        plan = Path(directory) / "plan.json"
        plan.write_text(learner.collection.plan.to_json())
        fewer = dataclasses.replace(
            config,
            table_rows=tuple(-(-rows // _FEWER) for rows in config.table_rows),
            placements=(),
            plan=str(plan),
        )
        return Steps(fewer, make_learner(fewer, learner.mesh))


def bytes_held(state: TrainState) -> int:
    """Bytes of tables and optimizer state, over all devices."""
    arrays = jax.tree.leaves((state.embedding.weights, state.embedding.slots))
    return sum(shard.data.nbytes for array in arrays for shard in array.addressable_shards)


def main(argv: Sequence[str]) -> None:
    """Memory first, on its own; then the steps in turn."""
    del argv
    config = with_flags(preset(FLAGS.preset))
    if FLAGS["examples"].present:
        raise UserError("--examples has no effect: there are as many as the batches need")
    if FLAGS["zipf_exponent"].present and FLAGS.ids == "uniform":
        raise UserError("--zipf_exponent has no effect with --ids=uniform")
    exponent = 0.0 if FLAGS.ids == "uniform" else config.zipf_exponent or 1.05
    config = dataclasses.replace(config, zipf_exponent=exponent)
    # Just enough examples for the batches: memory is to be that of the run, not of its data.
    config = dataclasses.replace(config, examples=-(-_BATCHES * config.batch_size * 10 // 8))
    against_shape = FLAGS.against and parse_mesh(FLAGS.against, "--against")
    mesh = start(FLAGS.mesh)
    if against_shape:  # refused before the rest, which takes long
        check_batch_size(make_mesh(against_shape), "batch_size", config.batch_size)

    learner = make_learner(config, mesh)
    steps = Steps(config, learner)
    steps.run(_BATCHES)
    save_and_restore(learner, steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT
    held = bytes_held(steps.state)

    compared = {"steps": steps, "fewer_rows": with_fewer_rows(config, learner)}
    if FLAGS.against:
        compared["against"] = Steps(config, make_learner(config, make_mesh(FLAGS.against)))
    for each in compared.values():
        each.run(_BATCHES)
    times: dict[str, list[float]] = {name: [] for name in compared}
    for _ in range(FLAGS.rounds):
        for name, each in compared.items():
            times[name].append(each.run(FLAGS.steps_per_round))

    def ratio(other: str) -> float:
        """The median of the rounds' ratios, whose two timings saw the same machine."""
        pairs = zip(times["steps"], times[other], strict=True)
        return statistics.median(a / b for a, b in pairs)

    milliseconds = [1e3 * seconds for seconds in times["steps"]]
    against = {}
    if FLAGS.against:
        against = {
            "against": FLAGS.against,
            "against_median_ms": 1e3 * statistics.median(times["against"]),
            "mesh_ratio": ratio("against"),
        }
    print(
        json.dumps(
            {
                "preset": FLAGS.preset,
                "mesh": FLAGS.mesh,
                "batch_size": config.batch_size,
                "optimizer": config.optimizer,
                "ids": FLAGS.ids,
                "zipf_exponent": exponent,
                "rows": sum(config.table_rows),
                "median_ms": statistics.median(milliseconds),
                "min_ms": min(milliseconds),
                "max_ms": max(milliseconds),
                "examples_per_second": 1e3 * config.batch_size / statistics.median(milliseconds),
                "fewer_rows_median_ms": 1e3 * statistics.median(times["fewer_rows"]),
                "rows_ratio": ratio("fewer_rows"),
                **against,
                "tables_and_state_gib": held / 2**30,
                "peak_gib": peak / 2**30,
                "bound_gib": 1.25 * held / 2**30 + 1,
                "allocator": os.environ.get("GLIBC_TUNABLES"),
                "device": jax.devices()[0].device_kind,
                "versions": versions(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    run(main)
