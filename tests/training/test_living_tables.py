"""Training with dynamic ids is that of a static vocabulary, and of a model in NumPy."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import numpy as np
import pytest
from living_tables import Drifting, arrays, learner, learner_on, run, translated

from dlrm_jax.data.batches import Batch
from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.errors import UserError
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.learner import TrainState
from dlrm_jax.training.penalty import Penalty

STEPS = 50
ROWS = (400, 100)  # for all ids
SEED = 5
OFTEN = [("1x8", "devices", True)]


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


class Vocabulary:
    """The same batches with the numbers of a vocabulary that was made beforehand."""

    steps_per_epoch, batch_size = Drifting.steps_per_epoch, Drifting.batch_size

    def __init__(self):
        columns = np.concatenate([Drifting()[step].ids for step in range(STEPS)])
        rng = np.random.default_rng(1)
        self.numbers: dict[str, dict[int, int]] = {}
        for table, of_table in (("items", slice(0, 4)), ("tags", slice(4, 6))):
            ids = np.unique(columns[:, of_table])
            ids = rng.permutation(ids[ids != -1]).tolist()
            self.numbers[table] = {key: number for number, key in enumerate(ids)} | {-1: -1}

    def __getitem__(self, step: int) -> Batch:
        batch = Drifting()[step]
        ids = batch.ids.copy()
        for table, of_table in (("items", slice(0, 4)), ("tags", slice(4, 6))):
            number = np.vectorize(self.numbers[table].__getitem__)
            ids[:, of_table] = number(ids[:, of_table])
        return batch._replace(ids=ids.astype(np.int32))


def matching_rows(maps: IdMaps, words: Vocabulary, table: str) -> tuple[np.ndarray, np.ndarray]:
    """The rows of all ids of a table in the map, and in the vocabulary."""
    numbers = {key: n for key, n in words.numbers[table].items() if key != -1}
    rows = maps.maps[table].find(np.array([*numbers]))
    assert len(np.unique(rows)) == len(numbers)
    assert rows.min() >= 1
    return rows, np.array([*numbers.values()])


@functools.cache
def trained_with_a_vocabulary() -> tuple[Vocabulary, dict[str, np.ndarray], list[float]]:
    """Arrays and losses of the run on one device, from the rows that all resets of a run give."""
    living, static = learner("1x1", "rows", ROWS), learner("1x1", "rows", ROWS, ids=None)
    words, maps, state = Vocabulary(), IdMaps(living.collection), living.collection.init(SEED)
    for step in range(STEPS):
        fresh = maps.translate(Drifting()[step].ids, step).fresh
        state = living.collection.reset_rows(state, fresh, SEED, step)
    tables = {x.name: np.array(own["table"]) for x, own in living.collection.to_arrays(state)}
    for name in ("items", "tags"):
        rows, numbers = matching_rows(maps, words, name)
        drawn = tables[name]
        tables[name] = np.zeros_like(drawn)
        tables[name][numbers] = drawn[rows]
    start = static.collection.from_arrays(lambda table: {"table": tables[table.name]}, SEED)
    state, losses = run(static, static.init(SEED, start), words, STEPS)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    return words, arrays(static, state), losses


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("mesh", "placed", "pipelined"),
    [
        pytest.param(*case, marks=() if case in OFTEN else pytest.mark.thorough)
        for case in itertools.product(
            ("1x1", "2x4", "4x2", "1x8"), ("rows", "columns", "devices"), (False, True)
        )
    ],
)
def test_with_room_for_all_it_is_the_training_with_a_vocabulary(mesh, placed, pipelined):
    words, wanted, expected = trained_with_a_vocabulary()
    living = learner(mesh, placed, ROWS)
    maps = IdMaps(living.collection)
    state, losses = run(living, living.init(SEED), translated(living, maps), STEPS, pipelined)

    np.testing.assert_allclose(losses, expected, rtol=1e-9, atol=1e-9)
    found = arrays(living, state)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        table, own = name.split("/")[0], found[name]
        if table in ("items", "tags"):
            rows, numbers = matching_rows(maps, words, table)
            array, own = array[numbers], own[rows]
        np.testing.assert_allclose(own, array, rtol=1e-9, atol=1e-9, err_msg=name)


@functools.cache
def penalized(
    mesh: str, placed: str, whole_tables: bool
) -> tuple[dict[str, np.ndarray], list[float]]:
    """The arrays and losses of a run with a penalty, in which many ids lose their rows."""
    penalty = Penalty(tables=0.1, whole_tables=whole_tables)
    living = learner(mesh, placed, penalty=penalty)
    batches = translated(living, IdMaps(living.collection))
    state, losses = run(living, living.init(SEED), batches, 20, pipelined=placed != "rows")
    return arrays(living, state), losses


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("mesh", "placed", "whole_tables"),
    [
        ("1x8", "devices", True),
        pytest.param("2x4", "columns", False, marks=pytest.mark.thorough),
        pytest.param("2x4", "columns", True, marks=pytest.mark.thorough),
        pytest.param("1x8", "devices", False, marks=pytest.mark.thorough),
    ],
)
def test_with_a_penalty_it_is_the_same_on_every_mesh_and_placement(mesh, placed, whole_tables):
    # In float32, a ReLU's input that is 0 but for rounding makes meshes differ by far more.
    wanted, expected = penalized("1x1", "rows", whole_tables)
    found, losses = penalized(mesh, placed, whole_tables)
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-9, atol=1e-9, err_msg=name)


@functools.cache
def unbroken(steps: int) -> tuple[dict[str, np.ndarray], list[float], dict[str, Any]]:
    """The arrays, losses and maps of a run of 20 steps in which many ids lose their rows."""
    living = learner_on("2x4", "rows", dtype="float32")
    maps = IdMaps(living.collection)
    state, losses = run(living, living.init(SEED), translated(living, maps), steps)
    return arrays(living, state), losses, maps.arrays()


@pytest.mark.parametrize(
    ("mesh", "placed", "pipelined"),
    [
        pytest.param("2x4", "rows", True, marks=pytest.mark.thorough),
        pytest.param("4x2", "devices", False, marks=pytest.mark.thorough),
        pytest.param("2x4", "rows", False, marks=pytest.mark.thorough),
    ],
)
def test_interrupted_and_resumed_it_is_the_unbroken_run(mesh, placed, pipelined, tmp_path):
    """On the same mesh bit for bit; on others ids keep their rows."""
    expected, losses, expected_maps = unbroken(20)
    checkpoints = Checkpoints(tmp_path / "checkpoints", {"data": "drifting"})
    living = learner_on("2x4", "rows", dtype="float32")
    batches = translated(living, IdMaps(living.collection))

    def keep(state: TrainState, *_: object) -> bool:
        step = int(state.step)
        checkpoints.save(living, state, {}, None, batches.maps.maps_at(step))
        if step == 10:
            raise KeyboardInterrupt  # while the next batches have been translated
        return True

    with pytest.raises(KeyboardInterrupt):
        run(living, living.init(SEED), batches, 20, pipelined, checkpoint_every=5, keep=keep)

    other = learner_on(mesh, placed, dtype="float32")
    maps = IdMaps(other.collection)
    state, step = checkpoints.restore_latest(other, maps)
    assert step == 10
    state, later = run(other, state, translated(other, maps, step), 20, pipelined)
    same = (mesh, placed) == ("2x4", "rows")
    tolerance = 0 if same else 1e-4
    np.testing.assert_allclose(later, losses[10:], rtol=tolerance, atol=tolerance)
    for name, array in arrays(other, state).items():
        np.testing.assert_allclose(array, expected[name], tolerance, tolerance, err_msg=name)
    for table, own in maps.arrays().items():
        for name, array in own.items():
            np.testing.assert_array_equal(array, expected_maps[table][name])
    assert min(own["counts"].max() for own in expected_maps.values()) > 1


def test_evaluations_see_the_maps_of_their_step():
    living = learner_on("2x4", "rows", dtype="float32")
    batches = translated(living, IdMaps(living.collection))
    found = {}

    def validate(state: TrainState) -> dict[str, float]:
        step = int(state.step)
        found[step] = batches.maps.maps_at(step).arrays()
        return {}

    run(living, living.init(SEED), batches, 9, checkpoint_every=3, validate=validate)
    own = IdMaps(living.collection)
    for step in range(9):
        own.translate(Drifting()[step].ids, step)
        if step + 1 in found:
            for table, expected in own.arrays().items():
                for name, array in expected.items():
                    np.testing.assert_array_equal(found[step + 1][table][name], array)
    assert [*found] == [3, 6, 9]


@pytest.mark.thorough
def test_checkpoints_of_other_maps_are_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", {"data": "drifting"})
    living = learner_on("1x1", "rows", dtype="float32")
    maps = IdMaps(living.collection)
    maps.translate(Drifting()[0].ids, 0)
    checkpoints.save(living, living.init(SEED), {}, None, maps)
    with pytest.raises(UserError, match="ids of the tables items, tags, expected none"):
        checkpoints.restore_latest(living)
    static = learner_on("1x1", "rows", ids=None, dtype="float32")
    other = Checkpoints(tmp_path / "static", {"data": "drifting"})
    other.save(static, static.init(SEED), {}, None)
    with pytest.raises(UserError, match="ids of the tables none, expected items, tags"):
        other.restore_latest(living, maps)


def test_a_batch_of_more_ids_than_rows_ends_the_run():
    living = learner_on("1x1", "rows", (5, 70), dtype="float32")
    batches = translated(living, IdMaps(living.collection))
    with pytest.raises(UserError, match="the batch of step 1: table items: a batch of "):
        run(living, living.init(SEED), batches, 3)
