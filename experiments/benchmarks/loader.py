"""Times the loader by itself, and its cost in a training step.

    python -m experiments.benchmarks.loader --batch_size=8192

It prints one JSON object. ``loader`` is examples per second read from a split of several days,
memory maps of files in the page cache, through whole epochs: ``full`` with all examples shuffled
together, ``windowed`` with windows of ``--shuffle_window``. ``ratio`` is the time of a training
step that the loader feeds over that of a step on one batch kept on the devices. The two run in
turn; the ratio is a median over rounds, of the median steps of a round, as other processes disturb
both.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import numpy as np
from absl import flags

from dlrm_jax.cli.config_flags import OF_WHOLE_RUNS, define_run_flags, with_flags
from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from dlrm_jax.cli.start import start
from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Examples, Split
from dlrm_jax.data.batches import Batch, TrainBatches
from dlrm_jax.data.prefetch import Prefetch
from dlrm_jax.presets import preset
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.config_data import generate_data
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.record import versions
from dlrm_jax.training.step import make_train_step
from experiments.benchmarks.timing import in_turn, mean_seconds, ratio_quartiles

_READ = ("examples", "shuffle_window")
_NO_EFFECT = [name for name in OF_WHOLE_RUNS if name not in _READ]

define_run_flags("kaggle", dict.fromkeys(_NO_EFFECT, "only the loader and some steps are timed"))
flags.DEFINE_integer("days", 8, "Days that the examples are split into; such as 24.", 1)
flags.DEFINE_integer("rounds", 15, "Rounds in which each source is timed; such as 30.", 1)
flags.DEFINE_integer("steps_per_round", 20, "Steps timed together; such as 50.", 2)

_EPOCHS = 3
_WINDOW = 1 << 18


def write_days(split: Split, days: int, directory: Path) -> Split:
    """Writes the examples to files and maps them; the page cache holds the files."""
    edges = np.linspace(0, len(split), days + 1).astype(int).tolist()
    mapped = []
    for number in range(days):
        day = split.take(np.arange(edges[number], edges[number + 1]))
        arrays = {}
        for name, array in day.arrays.items():
            path = directory / f"{number}_{name}.npy"
            np.save(path, array)
            arrays[name] = np.load(path, mmap_mode="r")
        mapped.append(Examples.of(arrays))
    return Split(tuple(mapped))


def examples_per_second(batches: TrainBatches) -> float:
    """Examples per second over whole epochs, permutations included, after one epoch untimed."""
    steps = batches.steps_per_epoch
    for step in range(steps):
        batches[step]
    later = map(batches.__getitem__, range(steps, (1 + _EPOCHS) * steps))
    return batches.batch_size / mean_seconds(later, _EPOCHS * steps)


def time_in_turn(config: Config, learner: Learner, batches: TrainBatches) -> dict[str, list[float]]:
    """Seconds of the median step of each round, ``loaded`` and with ``one`` kept batch."""
    step, state = make_train_step(learner), learner.init(config.seed)
    kept, numbers, count = learner.put(batches[0]), itertools.count(1), FLAGS.steps_per_round

    def train(placed: Iterable[Batch]) -> Iterator[float]:
        nonlocal state
        for batch in placed:
            state, loss = step(state, batch)
            yield float(loss)

    def median_step(placed: Iterable[Batch]) -> float:
        losses = train(placed)
        _, *seconds = [mean_seconds(losses, 1) for _ in range(count)]  # a loader starts first
        return statistics.median(seconds)

    def loaded() -> float:
        wanted = (batches[i] for i in itertools.islice(numbers, count))
        with Prefetch(wanted, learner.put) as placed:
            return median_step(placed)

    runs = {"loaded": loaded, "one": lambda: median_step(itertools.repeat(kept, count))}
    in_turn(runs, 1)
    return in_turn(runs, FLAGS.rounds)


def main() -> None:
    """Times the loader alone, then training."""
    mesh = start(FLAGS.mesh)
    config = with_flags(preset(FLAGS.preset))
    config = dataclasses.replace(config, shuffle_window=config.shuffle_window or _WINDOW)
    learner = make_learner(config, mesh)
    with tempfile.TemporaryDirectory() as directory:
        split = write_days(generate_data(config).train, FLAGS.days, Path(directory))
        size, seed = config.batch_size, config.seed
        windowed = TrainBatches(split, size, seed, config.shuffle_window)
        loader = {
            "full": examples_per_second(TrainBatches(split, size, seed)),
            "windowed": examples_per_second(windowed),
        }
        steps = time_in_turn(config, learner, windowed)
    results = {
        "preset": FLAGS.preset,
        "mesh": FLAGS.mesh,
        "batch_size": size,
        "examples": len(split),
        "days": FLAGS.days,
        "dense_features": split.dense_features,
        "ids": split.ids_per_example,
        "shuffle_window": config.shuffle_window,
        "loader": loader,
        "step_ms": {name: 1e3 * statistics.median(own) for name, own in steps.items()},
        "ratio": ratio_quartiles(steps["loaded"], steps["one"])[1],
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
    }
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    run(main)
