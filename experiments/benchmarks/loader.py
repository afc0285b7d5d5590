"""Times the loader by itself, and its cost in a training step.

    python -m experiments.benchmarks.loader --batch_size=8192

It prints one JSON object. ``loader`` is examples per second read from a split of several days,
memory maps of files in the page cache, through whole epochs: ``full`` with all examples shuffled
together, ``windowed`` with windows of ``--shuffle_window``. ``ratio`` is the time of a training
step that the loader feeds over that of a step on one batch kept on the devices, ``ratio_many`` over
that of steps on several kept batches: the rows of a single batch stay in the processor's cache,
which isn't due to the loader. The three run in turn; the ratios are medians over rounds, of the
median steps of a round, as other processes disturb both. ``waited_ms`` is the mean time that a step
waited for its batch, which a median may not show.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

from dlrm_jax.cli.config_flags import define_run_flags, with_flags
from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from dlrm_jax.cli.start import start
from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Examples, Split
from dlrm_jax.data.batches import Batch, TrainBatches
from dlrm_jax.data.prefetch import Prefetch
from dlrm_jax.presets import preset
from dlrm_jax.training.build import generate_data, make_learner
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.record import versions
from dlrm_jax.training.step import make_train_step
from experiments.benchmarks.timing import in_turn, mean_seconds, ratio_quartiles

define_run_flags(default_preset="kaggle")
flags.DEFINE_integer("days", 8, "Days that the examples are split into; such as 24.", 1)
flags.DEFINE_integer("rounds", 15, "Rounds in which each source is timed; such as 30.", 1)
flags.DEFINE_integer("steps_per_round", 20, "Steps timed together; such as 50.", 2)

_EPOCHS = 3
_WINDOW = 1 << 18
_KEPT = 20


def write_days(split: Split, days: int, directory: Path) -> Split:
    """Writes the examples to files and maps them; the page cache holds the files."""
    edges = np.linspace(0, len(split), days + 1).astype(int).tolist()
    mapped = []
    for number in range(days):
        day = split.take(np.arange(edges[number], edges[number + 1]))
        for name, array in day.arrays.items():
            np.save(directory / f"{number}_{name}.npy", array)
        mapped.append(
            Examples(
                **{
                    name: np.load(directory / f"{number}_{name}.npy", mmap_mode="r")
                    for name in day.arrays
                }
            )
        )
    return Split(tuple(mapped))


def examples_per_second(batches: TrainBatches) -> float:
    """Examples per second over whole epochs, permutations included, after one epoch untimed."""
    steps = batches.steps_per_epoch
    for step in range(steps):
        batches[step]
    later = map(batches.__getitem__, range(steps, (1 + _EPOCHS) * steps))
    return batches.batch_size / mean_seconds(later, _EPOCHS * steps)


class Round(NamedTuple):
    """Seconds of the median step, and the mean seconds that a step waited for its batch."""

    step: float
    waited: float


class Training:
    """A state, and training steps from it.

    Args:
        learner: learner of the state.
        seed: seed of its initial values.
    """

    def __init__(self, learner: Learner, seed: int):
        self._step = make_train_step(learner)
        self._state = learner.init(seed)

    def run(self, placed: Iterator[Batch]) -> Round:
        """Trains on these batches; the first one, with which a loader starts, isn't timed."""
        times = []
        while True:
            begun = time.perf_counter()
            batch = next(placed, None)
            waited = time.perf_counter() - begun
            if batch is None:
                seconds, waits = zip(*times[1:], strict=True)
                return Round(statistics.median(seconds), statistics.mean(waits))
            self._state, loss = self._step(self._state, batch)
            float(loss)
            times.append((time.perf_counter() - begun, waited))


def time_in_turn(config: Config, learner: Learner, batches: TrainBatches) -> dict[str, list[Round]]:
    """Times rounds of training: ``loaded``, with ``one`` kept batch, with ``many``."""
    training = Training(learner, config.seed)
    kept = [learner.put(batches[step]) for step in range(_KEPT)]
    count = FLAGS.steps_per_round
    position = _KEPT

    def loaded() -> Round:
        nonlocal position
        wanted = (batches[step] for step in range(position, position + count))
        position += count
        with Prefetch(wanted, learner.put) as placed:
            return training.run(placed)

    def resident(number: int) -> Round:
        return training.run(iter([kept[i % number] for i in range(count)]))

    sources = {"loaded": loaded, "one": lambda: resident(1), "many": lambda: resident(_KEPT)}
    in_turn(sources, 1)
    return in_turn(sources, FLAGS.rounds)


def main() -> None:
    """Times the loader alone, then training."""
    config = with_flags(preset(FLAGS.preset))
    config = dataclasses.replace(config, shuffle_window=config.shuffle_window or _WINDOW)
    mesh = start(FLAGS.mesh)
    learner = make_learner(config, mesh)
    with tempfile.TemporaryDirectory() as directory:
        split = write_days(generate_data(config).train, FLAGS.days, Path(directory))
        size, seed = config.batch_size, config.seed
        windowed = TrainBatches(split, size, seed, config.shuffle_window)
        loader = {
            "full": examples_per_second(TrainBatches(split, size, seed)),
            "windowed": examples_per_second(windowed),
        }
        rounds = time_in_turn(config, learner, windowed)
    steps = {name: [each.step for each in own] for name, own in rounds.items()}
    print(
        json.dumps(
            {
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
                "waited_ms": 1e3 * statistics.mean(r.waited for r in rounds["loaded"]),
                "ratio": ratio_quartiles(steps["loaded"], steps["one"])[1],
                "ratio_many": ratio_quartiles(steps["loaded"], steps["many"])[1],
                "device": jax.devices()[0].device_kind,
                "versions": versions(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    run(main)
