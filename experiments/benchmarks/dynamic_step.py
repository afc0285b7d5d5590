"""Times a train step of tables with dynamic ids beside that of the same tables with fixed ids.

    python -m experiments.benchmarks.dynamic_step --preset=kaggle --batch_size=2048

Both read the same ids, by Zipf's law, from a loader's thread, but for a share of the dynamic ones
(``--born``), which are ids that were never seen: each gets a row, which another id loses when the
table is full. Tables of more than ``--dynamic_above`` rows have dynamic ids; the maps are full
before the first round. It prints one JSON object: milliseconds of a step of each, the median over
the rounds, ``ratio`` of dynamic over fixed with its quartiles, taken round by round, and how many
ids a step were born.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
from collections.abc import Callable, Iterator

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from dlrm_jax.cli.config_flags import OF_WHOLE_RUNS, define_run_flags, with_flags
from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from dlrm_jax.cli.start import start
from dlrm_jax.config import Config
from dlrm_jax.data.batches import Batch
from dlrm_jax.data.prefetch import Prefetch
from dlrm_jax.errors import UserError
from dlrm_jax.presets import preset
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.dynamic_tables import id_maps_of
from dlrm_jax.training.live_maps import LiveMaps
from dlrm_jax.training.record import versions
from dlrm_jax.training.step import make_train_step
from experiments.benchmarks.born_ids import Ids
from experiments.benchmarks.timing import in_turn, mean_seconds, ratio_quartiles

_NO_EFFECT = [name for name in OF_WHOLE_RUNS if name != "zipf_exponent"]

define_run_flags("kaggle", dict.fromkeys(_NO_EFFECT, "only some steps are timed"))
flags.DEFINE_integer("max_rows", 400_000, "Most rows of a table; such as 1000000.", 2)
flags.DEFINE_integer(
    "dynamic_above", 20_000, "Rows above which a table has dynamic ids; such as 1000.", 1
)
flags.DEFINE_float("born", 0.005, "Share of the dynamic ids that were never seen.", 0, 1)
flags.DEFINE_integer("rounds", 15, "Rounds in which both are timed; such as 30.", 1)
flags.DEFINE_integer("steps_per_round", 20, "Steps timed together; such as 50.", 2)


def fixed_steps(config: Config, mesh: Mesh, ids: Ids) -> Callable[[], float]:
    """A function that takes some steps on fixed ids, and gives the seconds of one."""
    learner = make_learner(config, mesh)
    step, state, numbers = make_train_step(learner), learner.init(config.seed), itertools.count()

    def run() -> float:
        nonlocal state

        def steps(batches: Iterator[Batch]) -> Iterator[float]:
            nonlocal state
            for batch in batches:
                state, loss = step(state, batch)
                yield float(loss)

        count = FLAGS.steps_per_round
        wanted = (ids.fixed(i) for i in itertools.islice(numbers, count))
        with Prefetch(wanted, learner.put) as placed:
            return mean_seconds(steps(iter(placed)), count)

    return run


def dynamic_steps(config: Config, mesh: Mesh, ids: Ids) -> Callable[[], float]:
    """The same on dynamic ids, whose maps are full."""
    learner = make_learner(config, mesh)
    maps = id_maps_of(learner.collection, config.seed)
    assert maps
    for own in maps.maps.values():
        own.parts[0].translate(np.arange(own.capacity), now=0)
    live = LiveMaps(learner, maps, config.seed)
    step, state, numbers = make_train_step(learner), learner.init(config.seed), itertools.count()

    def translated(number: int) -> Batch:
        batch = ids.raw(number)
        return batch._replace(ids=live.translate(batch.ids))

    def run() -> float:
        nonlocal state
        count = FLAGS.steps_per_round
        chosen = list(itertools.islice(numbers, count))

        def steps(batches: Iterator[Batch]) -> Iterator[float]:
            nonlocal state
            for number, batch in zip(chosen, batches, strict=True):
                state = live.begin(state, number)
                state, loss = step(state, batch)
                yield float(loss)

        with Prefetch(map(translated, chosen), learner.put) as placed:
            return mean_seconds(steps(iter(placed)), count)

    return run


def main() -> None:
    """Times both in turn."""
    mesh = start(FLAGS.mesh)
    config = with_flags(preset(FLAGS.preset))
    rows = tuple(min(own, FLAGS.max_rows) for own in config.table_rows)
    config = dataclasses.replace(config, table_rows=rows)
    columns = [i for i, own in enumerate(rows) if own > FLAGS.dynamic_above]
    if not columns or max(config.bag_lengths, default=1) > 1:
        raise UserError(
            f"expected tables of one id a feature, some of more than --dynamic_above="
            f"{FLAGS.dynamic_above} rows, got {', '.join(map(str, rows))}; give other --table_rows"
        )
    names = config.table_names
    dynamic = dataclasses.replace(
        config, dynamic_ids=tuple(f"{names[i]}={rows[i]}" for i in columns)
    )
    ids = Ids(config, columns, FLAGS.born)
    runs = {"fixed": fixed_steps(config, mesh, ids), "dynamic": dynamic_steps(dynamic, mesh, ids)}
    in_turn(runs, 3)  # compiles, and begins rows
    seconds = in_turn(runs, FLAGS.rounds)
    lower, median, upper = ratio_quartiles(seconds["dynamic"], seconds["fixed"])
    result = {
        "preset": FLAGS.preset,
        "mesh": FLAGS.mesh,
        "batch_size": config.batch_size,
        "tables": len(rows),
        "dynamic_tables": len(columns),
        "rows": sum(rows),
        "born_a_step": ids.born,
        "step_ms": {name: 1e3 * statistics.median(own) for name, own in seconds.items()},
        "ratio": median,
        "quartiles": [lower, upper],
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    run(main)
