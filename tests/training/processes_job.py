"""Trains the problem of `setups` in one of several processes; started by `test_processes`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from drawn_batches import make_batches
from jax.experimental import multihost_utils
from named_arrays import dense_arrays, start
from setups import Setup, train

from dlrm_jax import processes
from dlrm_jax.agreements import Agreements
from dlrm_jax.coordinator import join
from dlrm_jax.data.batches import Batch
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import emulate_devices
from dlrm_jax.processes import (
    agreed,
    all_agreed,
    check_same,
    gathered_bytes,
    is_process_0,
    led,
    on_process_0,
)
from dlrm_jax.training import checksums
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.touched_rows import TouchedRows

DEVICES = 8
STEPS = 8  # of the run that is gone on with
STEPS_BEFORE = 3  # of these, those in one process

# By the number of processes: what goes on from a checkpoint of one process, on another mesh and
# with another plan. The shards of a group lie in several processes.
RESUMED = {
    count: Setup(mesh, "adam", placed="columns", shard_dense_optimizer=True)
    for count, mesh in ((2, "1x8"), (4, "2x4"))
}


def main(coordinator: str, count: int, index: int, directory: Path) -> None:
    emulate_devices(DEVICES, count)
    join(coordinator, count, index)
    jax.config.update("jax_enable_x64", True)
    with np.load(directory / "initial.npz") as arrays:
        initial = dict(arrays)
    batches = [part_of(batch, index, count) for batch in make_batches("float64")]

    wanted = json.loads((directory / "wanted.json").read_text())
    for number, fields in enumerate(wanted["setups"]):
        learner = Setup(**fields).learner()
        state, losses = train(learner, start(learner, initial), batches, wanted["steps"])
        arrays = gathered(learner, state)
        check_reads(learner, state, arrays)
        if is_process_0():
            path = directory / f"trained-{number}.npz"
            np.savez(path, allow_pickle=False, losses=losses, **arrays)

    learner = RESUMED[count].learner()
    checksums._ON_DEVICE_BYTES = 2**11  # some arrays are summed there, some on the host
    # Later ones are damaged: two in their numbers, which all find out together, and one that lacks
    # files, which process 0 finds out for all.
    state, step = Checkpoints(directory / "before", {}).restore_latest(learner)
    assert step == STEPS_BEFORE
    rest = batches[STEPS_BEFORE:] + batches[:STEPS_BEFORE]
    state, _ = train(learner, state, rest, STEPS - STEPS_BEFORE)
    Checkpoints(directory / "after", {}).save(learner, state, {}, None)
    numbers, values = check_reads(learner, state, gathered(learner, state))
    written = learner.collection.write_rows(learner.init(1).embedding, numbers, values)
    assert_same(learner.collection.read_row_state(written, numbers), values)

    answers: list[list[int]] = []
    processes._PIECE = 1 << 11
    seen = {
        "largest": agreed(index * 10),
        "largest of two": all_agreed([index, -index]),
        "two steps later": two_steps_later(index),
        "bytes": [x.tolist() for x in gathered_bytes(np.full(3000 * index, index, np.uint8))],
        "led": led(lambda ask: [ask(3), ask(4)], lambda x: answering(answers, x + index)),
        "answers": answers,
        "touched": touched(learner, index),
        "result": on_process_0(lambda: ["of", index]),
        "long": on_process_0(lambda: "x" * 5000),
        "error": message(UserError, lambda: on_process_0(failing(UserError(f"of {index}")))),
        "refused": message(OSError, lambda: on_process_0(failing(OSError(28, f"full in {index}")))),
        "differing": message(UserError, lambda: check_same({"a": (1, 2), "b": index})),
        "bug": message(
            RuntimeError if index else KeyError, lambda: on_process_0(failing(KeyError(index)))
        ),
    }
    (directory / f"seen-{index}.json").write_text(json.dumps(seen))


def part_of(batch: Batch, index: int, count: int) -> Batch:
    parts = [None if x is None else np.split(x, count)[index] for x in batch]
    return Batch(*parts)


def gathered(learner: Learner, state: TrainState) -> dict[str, np.ndarray]:
    """What `named_arrays.arrays_of` gives, in every process."""
    tables = {
        f"{table.name}/{key}": np.asarray(multihost_utils.process_allgather(array, tiled=True))
        for table, logical in learner.collection.to_arrays(state.embedding)
        for key, array in logical.items()
    }
    return tables | dense_arrays(state.params)


def two_steps_later(index: int) -> list[list[int]]:
    """Answers to questions of which each process knows some; the first is due once."""
    agreements, found = Agreements(2, questions=2), []
    for step in range(6):
        agreements.ask([step == index, 10 * step + index])
        if step >= 2:
            found.append(agreements.answers())
    return found


def answering(answers: list[list[int]], value: int) -> list[int]:
    """The values of all processes."""
    answers.append([agreed(value), value])
    return answers[-1]


def check_reads(learner: Learner, state: TrainState, arrays: dict[str, np.ndarray]) -> tuple:
    """Checks rows, and their optimizer state, by whole arrays; gives both."""
    random = np.random.default_rng(0)
    numbers = {
        table.name: np.sort(random.permutation(table.rows)[:20]).astype(np.int32)
        for table in learner.collection.tables.values()
    }
    values = learner.collection.read_row_state(state.embedding, numbers)
    for name, own in values.items():
        for key, array in own.items():
            whole = arrays[f"{name}/{key}"]
            np.testing.assert_array_equal(array, whole[numbers[name]] if whole.ndim else whole)
    return numbers, values


def assert_same(found: dict[str, dict], expected: dict[str, dict]) -> None:
    for name, own in expected.items():
        for key, array in own.items():
            np.testing.assert_array_equal(found[name][key], array)


def touched(learner: Learner, index: int) -> list[dict[str, list[int]]]:
    """The rows that are taken: few of a large table, many, those of one process, and none."""
    marked = TouchedRows(learner.collection)
    name = max(learner.collection.tables, key=lambda x: learner.collection.tables[x].rows)
    rows = learner.collection.tables[name].rows
    found = []
    for own in ([index], [*range(index, rows, 3)], [[], [5]][index > 0], []):
        marked.mark({name: np.array(own, np.int32)})
        found.append({x: taken.tolist() for x, taken in marked.take().items()})
    return found


def failing(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def message(expected: type[Exception], action: Callable[[], None]) -> str:
    """Of the error that the action raises."""
    try:
        action()
    except expected as error:
        return str(error)
    return "nothing"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
