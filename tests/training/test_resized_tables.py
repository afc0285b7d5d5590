"""Runs that resume with more rows or fewer: those of ids are the same, and training goes on."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from living_tables import arrays, learner_on, run, translated

from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.errors import DamagedCheckpointError
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.learner import Learner, TrainState

SEED, SMALL, LARGE = 5, (90, 95), (401, 103)
BY_VALUE = jax.nn.initializers.normal(0.1)  # which doesn't depend on the number of rows


def on(mesh: str, placed: str = "rows", rows: tuple[int, int] = SMALL) -> Learner:
    return learner_on(mesh, placed, rows, dtype="float32", init=BY_VALUE)


def saved(directory: Path, mesh: str, steps: int) -> tuple[Checkpoints, IdMaps, Learner]:
    """The checkpoint of a run of so many steps with the small tables."""
    learner, checkpoints = on(mesh), Checkpoints(directory / "checkpoints", {"data": "drifting"})
    maps = IdMaps(learner.collection, SEED)
    batches = translated(learner, maps)
    state, _ = run(learner, learner.init(SEED), batches, steps)
    batches.maps.rewind(steps)
    checkpoints.save(learner, state, {}, None, maps)
    return checkpoints, maps, learner


def rows_of_ids(
    learner: Learner, state: TrainState, maps: IdMaps, ids: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Rows and optimizer state of ids, and of the defaults, by table and name."""
    found = {}
    for name, array in arrays(learner, state).items():
        table = name.split("/")[0]
        if table in ids:
            found[name] = array[maps.maps[table].find(ids[table])]
            found[f"{name} of defaults"] = array[:1]
        else:
            found[name] = array
    return found


def live(maps: IdMaps) -> dict[str, np.ndarray]:
    return {name: own["keys"][own["counts"] > 0] for name, own in maps.arrays().items()}


@pytest.mark.thorough
@pytest.mark.parametrize("mesh", ["1x1", "2x4"])
def test_growing_and_going_on_is_the_run_with_these_rows_from_the_start(mesh: str, tmp_path: Path):
    checkpoints, before, _ = saved(tmp_path, mesh, 8)
    assert all(own.live < own.capacity for own in before.maps.values())  # none has lost its row
    larger = on(mesh, rows=LARGE)
    maps = IdMaps(larger.collection, SEED)
    state, step = checkpoints.restore_latest(larger, maps)
    assert step == 8
    resumed, losses = run(larger, state, translated(larger, maps, 8), 20)

    whole = IdMaps(larger.collection, SEED)
    expected, all_losses = run(larger, larger.init(SEED), translated(larger, whole), 20)
    assert losses == all_losses[8:]
    wanted = arrays(larger, expected)
    for name, array in arrays(larger, resumed).items():
        np.testing.assert_array_equal(array, wanted[name], err_msg=name)
    for name, own in maps.arrays().items():
        for key, array in own.items():
            np.testing.assert_array_equal(array, whole.arrays()[name][key], err_msg=key)


@pytest.mark.parametrize(
    ("mesh", "placed", "rows"),
    [
        pytest.param("1x1", "rows", (60, 75), marks=pytest.mark.thorough),
        ("2x4", "rows", (57, 95)),
        pytest.param("2x4", "columns", (58, 200), marks=pytest.mark.thorough),
        pytest.param("4x2", "devices", (200, 71), marks=pytest.mark.thorough),
    ],
)
def test_ids_have_the_rows_that_they_had(mesh: str, placed: str, rows: tuple[int, int], tmp_path):
    checkpoints, before, learner = saved(tmp_path, "2x4", 20)
    said: list[str] = []
    object.__setattr__(checkpoints, "say", said.append)
    other = on(mesh, placed, rows)
    maps = IdMaps(other.collection, SEED)
    state, _ = checkpoints.restore_latest(other, maps)
    left = live(maps)
    for name, count in zip(("items", "tags"), rows, strict=True):
        was, lost = before.maps[name], before.maps[name].live - len(left[name])
        assert lost == max(0, was.live - (count - 1))
        seen = before.arrays()[name]
        kept = np.isin(seen["keys"], left[name]) & (seen["counts"] > 0)
        gone = ~kept & (seen["counts"] > 0)
        assert not lost or seen["last_seen"][gone].max() <= seen["last_seen"][kept].min()
        line = f"ids of table {name}: {count} rows, {was.capacity + 1} in checkpoint 00000020; "
        assert (f"{line}{lost} of {was.live} ids lose their rows" in said) == (
            count != was.capacity + 1
        )
    original = checkpoints.restore(learner, 20, before)
    expected = rows_of_ids(learner, original, before, left)
    for name, array in rows_of_ids(other, state, maps, left).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    _, losses = run(other, state, translated(other, maps, 20), 23)
    assert np.isfinite(losses).all()


@pytest.mark.thorough
def test_a_damaged_map_is_damage_with_other_rows_too(tmp_path: Path):
    checkpoints, _, _ = saved(tmp_path, "1x1", 2)
    content = tmp_path / "checkpoints" / "00000002" / "id_maps"
    largest = max((x for x in content.rglob("*") if x.is_file()), key=lambda x: x.stat().st_size)
    data = bytearray(largest.read_bytes())
    for place in range(len(data) // 4, len(data) // 4 * 3):
        data[place] ^= 0x55
    largest.write_bytes(bytes(data))
    larger = on("1x1", rows=LARGE)
    with pytest.raises(DamagedCheckpointError):
        checkpoints.restore(larger, 2, IdMaps(larger.collection, SEED))
