"""Times, profiles and counts one step."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.profiler import TraceAnnotation
from jax.sharding import Mesh

from dlrm_jax.config import Config
from dlrm_jax.data.batches import Batch
from dlrm_jax.data.prefetch import Prefetch
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.config_data import generate_data, train_batches
from dlrm_jax.training.evaluation import read_behind
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.step import make_train_step
from experiments.benchmarks import roofline
from experiments.benchmarks.timing import fastest_seconds, in_turn, mean_seconds
from experiments.characterize.cost import Cost, class_costs, table_arrays
from experiments.characterize.hlo import Program
from experiments.characterize.profile import DATA, WINDOW, Profile, class_seconds, record

MODULE = "jit_train_step"
"""The name of the step's program."""

# Several batches, so that the cache doesn't contain the rows of the next one.
_BATCHES = 20
_LEAD = 3  # uncounted steps, until the usual number is in flight
_STREAM_BYTES = 256 * 2**20


@dataclasses.dataclass(frozen=True)
class Measured:
    """The measurements of a step.

    Attributes:
        step: seconds, measured without the profiler.
        classes: seconds of the profiled step by class; they sum to the step.
        costs: costs of the whole mesh, by class.
        machine: measured limits of the machine.
        stream_bytes: bytes a second that the machine reads and writes in sequence.
        program: program of one device.
        profile: profile of the median round.
        kernels: names of the kernels for lookups, updates and the model.
    """

    step: float
    classes: dict[str, float]
    costs: dict[str, Cost]
    machine: roofline.Machine
    stream_bytes: float
    program: Program
    profile: Profile
    kernels: dict[str, str]

    @property
    def profiled(self) -> float:
        """Seconds of the profiled step."""
        return sum(self.classes.values())

    def limit(self, name: str) -> float:
        """The least seconds that a class's work takes."""
        cost = self.costs[name]
        return max(
            cost.flops / self.machine.flops,
            cost.nbytes / self.stream_bytes + cost.row_bytes / self.machine.row_bytes,
        )


class Steps:
    """The steps of `dlrm_jax train`, on generated batches that a thread loads and places."""

    def __init__(self, config: Config, learner: Learner):
        self._learner = learner
        # 80 % of the examples are for training.
        examples = -(-_BATCHES * config.batch_size * 10 // 8)
        data = generate_data(dataclasses.replace(config, examples=examples))
        self._batches = train_batches(config, data)
        self.batches = [self._batches[number] for number in range(_BATCHES)]
        self._ahead = learner.backend.programs_ahead
        self._train = make_train_step(learner)
        self._state = learner.init(config.seed)

    def compile(self) -> str:
        """The text of the compiled program of `run`."""
        batch = self._learner.put(self.batches[0])
        lowered: Any = self._train
        text = lowered.lower(self._state, batch).compile().as_text()
        assert text is not None
        return text

    def run(self, count: int) -> float:
        """Runs ``count`` steps within an annotation `WINDOW` and returns the seconds of one."""
        with Prefetch(self._loaded(), self._put) as placed:
            losses = read_behind(map(self._step, placed), self._ahead)
            mean_seconds(losses, _LEAD)
            with TraceAnnotation(WINDOW):
                seconds = mean_seconds(losses, count)
        jax.block_until_ready(self._state)
        return seconds

    def _loaded(self) -> Iterator[Batch]:
        for number in itertools.count():
            with TraceAnnotation(DATA):
                batch = self._batches[number]
            yield batch

    def _put(self, batch: Batch) -> Batch:
        with TraceAnnotation(DATA):
            return self._learner.put(batch)

    def _step(self, batch: Batch) -> jax.Array:
        self._state, loss = self._train(self._state, batch)
        return loss


def measure(config: Config, mesh: Mesh, rounds: int, count: int) -> Measured:
    """Times and profiles ``count`` steps in turn, so that both see the same machine."""
    learner = make_learner(config, mesh)
    steps = Steps(config, learner)
    program = Program(steps.compile())
    steps.run(_BATCHES)
    runs: dict[str, Callable[[], Any]] = {
        "seconds": lambda: steps.run(count),
        "profile": lambda: record(steps.run, count, MODULE),
    }
    found = in_turn(runs, rounds)
    by_length = sorted(found["profile"], key=lambda each: each.end - each.start)
    profile = by_length[(rounds - 1) // 2]
    native, dim = learner.collection.native, config.embedding_dim
    return Measured(
        step=statistics.median(found["seconds"]),
        classes=class_seconds(profile, program),
        costs=_costs(program, learner, steps.batches),
        machine=roofline.measure(dim, native, config.compute_dtype),
        stream_bytes=measure_stream(),
        program=program,
        profile=profile,
        kernels=learner.kernels_in_use,
    )


def _costs(program: Program, learner: Learner, batches: list[Batch]) -> dict[str, Cost]:
    """The costs by class, with distinct rows, as repeated rows are in caches."""
    costs = class_costs(program, table_arrays(program))
    looked_up = roofline.row_bytes(learner.collection, batches, train=False)
    in_all = roofline.row_bytes(learner.collection, batches, train=True)
    for name, nbytes in (("lookup", looked_up), ("update", in_all - looked_up)):
        if name in costs:
            costs[name] = costs[name]._replace(row_bytes=nbytes)
    return costs


def measure_stream() -> float:
    """The bytes a second that a sum of two large arrays reads and writes, at best."""
    x = jnp.ones(_STREAM_BYTES // 4)
    add = jax.jit(jnp.add, donate_argnums=0)
    y = jnp.ones_like(x)

    def step() -> None:
        nonlocal y
        y = add(y, x).block_until_ready()

    return 3 * _STREAM_BYTES / fastest_seconds(step)
