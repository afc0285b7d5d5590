"""Tables without some of their ids: the others have all that they had, and training goes on."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from living_tables import arrays, learner_on, run, translated
from main_job import run as run_program

from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.dynamic_ids.resizing import without
from dlrm_jax.errors import DamagedCheckpointError, UserError
from dlrm_jax.inference.pruned_run import write_pruned_run
from dlrm_jax.inference.pruning import Rules, plan_pruning
from dlrm_jax.inference.table_health import QUANTILES, table_health
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.metadata import read_metadata

STEPS, SEED = 20, 5
RULES = Rules(min_count=3, max_age=9)
ZEROS = jax.nn.initializers.zeros


@dataclasses.dataclass(frozen=True)
class Saved:
    """A run of 20 steps on 2x4 devices, and its checkpoint."""

    path: Path
    learner: Learner
    state: TrainState
    maps: IdMaps

    @property
    def metadata(self) -> dict[str, Any]:
        return read_metadata(self.path)


def checkpoints_in(workdir: Path) -> Checkpoints:
    return Checkpoints(workdir / "checkpoints", {"data": "drifting"})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    workdir = tmp_path_factory.mktemp("saved")
    learner = learner_on("2x4", dtype="float32", init=ZEROS)
    maps = IdMaps(learner.collection, SEED)
    batches = translated(learner, maps)
    state, _ = run(learner, learner.init(SEED), batches, STEPS)
    batches.maps.rewind(STEPS)
    (workdir / "metrics.jsonl").write_text('{"step": 20, "split": "train", "loss": 1}\n')
    checkpoints_in(workdir).save(learner, state, {}, None, maps)
    return Saved(workdir / "checkpoints" / "00000020", learner, state, maps)


def kept_ids(maps: IdMaps, rules: Rules, norms: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The ids that the rules leave, with a loop over rows."""
    found = {}
    for name, own in maps.arrays().items():
        kept = []
        for row in np.flatnonzero(own["counts"]).tolist():
            age = int(own["numbers"][0]) - int(own["last_seen"][row])
            goes = rules.min_count is not None and own["counts"][row] < rules.min_count
            goes |= rules.max_age is not None and age > rules.max_age
            goes |= rules.min_norm is not None and norms[name][row] < rules.min_norm
            if not goes:
                kept.append(own["keys"][row])
        found[name] = np.array(kept, np.uint64)
    return found


def by_id(
    learner: Learner, state: TrainState, maps: IdMaps, ids: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Rows and optimizer state of ids, then of the default; other arrays whole."""
    found = {}
    for name, array in arrays(learner, state).items():
        table = name.split("/")[0]
        rows = maps.maps[table].find(ids[table]) if table in ids else slice(None)
        found[name] = np.concatenate([array[rows], array[:1]]) if table in ids else array
    return found


def norms_of(saved: Saved) -> dict[str, np.ndarray]:
    found = arrays(saved.learner, saved.state)
    return {name: np.linalg.norm(found[f"{name}/table"], axis=1) for name in ("items", "tags")}


@pytest.mark.parametrize(
    ("mesh", "placed", "rules"),
    [
        ("2x4", "rows", RULES),
        pytest.param("1x1", "columns", Rules(min_norm=0.35), marks=pytest.mark.thorough),
        ("4x2", "devices", Rules(min_count=5, max_age=3, min_norm=0.2)),
    ],
)
def test_ids_that_are_left_have_all_that_they_had(
    saved: Saved, mesh: str, placed: str, rules: Rules, tmp_path: Path
):
    kept = kept_ids(saved.maps, rules, norms_of(saved))
    plans = {plan.name: plan for plan in plan_pruning(saved.path, saved.metadata, rules)}
    for name, plan in plans.items():
        own = saved.maps.arrays()[name]
        gone = ~np.isin(own["keys"], kept[name]) & (own["counts"] > 0)
        np.testing.assert_array_equal(plan.gone, np.flatnonzero(gone))
        assert 0 < len(plan.gone) == plan.ids - len(kept[name]) < plan.ids
        assert plan.counts == pytest.approx(own["counts"][gone].sum() / own["counts"].sum())
        assert plan.rows_left == len(kept[name]) + 1
        assert plan.row_bytes == 8 * 4 + 4  # rows and their accumulator
    path = write_pruned_run(saved.path, saved.metadata, [*plans.values()], tmp_path / "pruned")
    assert path == tmp_path / "pruned/checkpoints/00000020"
    assert (tmp_path / "pruned/metrics.jsonl").read_text().startswith('{"step": 20')

    learner = learner_on(mesh, placed, dtype="float32", init=ZEROS)
    maps = IdMaps(learner.collection, SEED)
    state, _ = checkpoints_in(tmp_path / "pruned").restore_latest(learner, maps)
    expected = by_id(saved.learner, saved.state, saved.maps, kept)
    for name, array in by_id(learner, state, maps, kept).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
    for name, own in maps.arrays().items():
        before = saved.maps.arrays()[name]
        for array in ("counts", "last_seen"):
            was = before[array][saved.maps.maps[name].find(kept[name])]
            np.testing.assert_array_equal(own[array][maps.maps[name].find(kept[name])], was)
        np.testing.assert_array_equal(np.sort(own["keys"][own["counts"] > 0]), np.sort(kept[name]))
        np.testing.assert_array_equal(own["numbers"], before["numbers"])


def test_it_goes_on_as_a_run_that_has_forgotten_these_ids(saved: Saved, tmp_path: Path):
    plans = plan_pruning(saved.path, saved.metadata, RULES)
    write_pruned_run(saved.path, saved.metadata, plans, tmp_path / "pruned")
    # With rows for all, none is evicted: which of equals goes depends on their rows.
    learner = learner_on("2x4", rows=(200, 200), dtype="float32", init=ZEROS)
    maps = IdMaps(learner.collection, SEED)
    state, _ = checkpoints_in(tmp_path / "pruned").restore_latest(learner, maps)
    _, losses = run(learner, state, translated(learner, maps, STEPS), 26)

    forgetful = IdMaps(learner.collection, SEED)
    state, _ = checkpoints_in(saved.path.parents[1]).restore_latest(learner, forgetful)
    own = forgetful.arrays()
    forgetful.load({plan.name: without(own[plan.name], plan.gone) for plan in plans})
    _, expected = run(learner, state, translated(learner, forgetful, STEPS), 26)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_only_named_tables_are_pruned_and_the_run_stays_as_it_is(saved: Saved, tmp_path: Path):
    before = {x: x.read_bytes() for x in saved.path.rglob("*") if x.is_file()}
    (plan,) = plan_pruning(saved.path, saved.metadata, RULES, ["tags"])
    assert plan.name == "tags"
    path = write_pruned_run(saved.path, saved.metadata, [plan], tmp_path / "pruned")
    assert {x: x.read_bytes() for x in saved.path.rglob("*") if x.is_file()} == before
    found = read_metadata(path)
    assert found["arrays"]["items/table"]["shape"] == [80, 8]
    assert found["arrays"]["tags/table"]["shape"] == [plan.rows_left, 8]
    assert found["id_maps"]["items"] == saved.metadata["id_maps"]["items"]
    with pytest.raises(UserError, match="pruned exists; remove it, or give another name"):
        write_pruned_run(saved.path, saved.metadata, [plan], tmp_path / "pruned")


def test_a_map_keeps_a_row_without_any_id(saved: Saved, tmp_path: Path):
    plans = plan_pruning(saved.path, saved.metadata, Rules(min_count=10**6))
    assert [plan.rows_left for plan in plans] == [2, 2]
    assert [plan.counts for plan in plans] == [1, 1]
    write_pruned_run(saved.path, saved.metadata, plans, tmp_path / "pruned")
    maps = IdMaps(saved.learner.collection, SEED)
    checkpoints_in(tmp_path / "pruned").restore_latest(saved.learner, maps)
    assert [own.live for own in maps.maps.values()] == [0, 0]


def test_tables_without_dynamic_ids_are_refused(saved: Saved, tmp_path: Path):
    for table, why in (("cities", "has no dynamic ids"), ("items.weight", "isn't there")):
        with pytest.raises(UserError, match=f"are items, tags, but {table} {why}"):
            plan_pruning(saved.path, saved.metadata, RULES, [table])
    static = learner_on("1x1", ids=None, dtype="float32")
    checkpoints_in(tmp_path).save(static, static.init(0), {}, None)
    path = tmp_path / "checkpoints" / "00000000"
    with pytest.raises(UserError, match=r"whose rows can be dealt anew; those of .* are none"):
        plan_pruning(path, read_metadata(path), RULES)


def test_damage_is_found(saved: Saved, tmp_path: Path):
    metadata = saved.metadata
    name = "tables/items/accumulator"
    kind, total = metadata["checksums"][name].split()
    metadata["checksums"][name] = f"{kind} {int(total, 16) ^ 1:016x}"
    plans = plan_pruning(saved.path, saved.metadata, RULES)
    with pytest.raises(DamagedCheckpointError, match=name):
        write_pruned_run(saved.path, metadata, plans, tmp_path / "pruned")
    assert not any(tmp_path.iterdir())
    with pytest.raises(DamagedCheckpointError, match=name):
        list(table_health(saved.path, metadata))


def test_killed_it_leaves_nothing_half_written(saved: Saved, tmp_path: Path):
    output = tmp_path / "pruned"
    code = f"""
import os, signal
from pathlib import Path
from dlrm_jax.inference import pruned_run
from dlrm_jax.inference.pruning import Rules, plan_pruning
from dlrm_jax.training.metadata import read_metadata
path = Path({str(saved.path)!r})
metadata = read_metadata(path)
plans = plan_pruning(path, metadata, Rules(min_count=3))
pruned_run.write_metadata = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
pruned_run.write_pruned_run(path, metadata, plans, Path({str(output)!r}))
"""
    result = run_program(program=("-c", code))
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert not output.exists()
    (left,) = tmp_path.iterdir()
    assert left.match(".pruned.*.dlrm_jax")
    plans = plan_pruning(saved.path, saved.metadata, RULES)
    write_pruned_run(saved.path, saved.metadata, plans, output)
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]


def test_health_is_that_of_a_loop_over_rows(saved: Saved):
    found = {each.table: each for each in table_health(saved.path, saved.metadata)}
    assert set(found) == {"items", "tags", "cities"}
    of_state, norms = arrays(saved.learner, saved.state), norms_of(saved)
    for name in ("items", "tags"):
        own, health = saved.maps.arrays()[name], found[name]
        live = np.flatnonzero(own["counts"])
        counts = np.sort(own["counts"][live])
        ages = np.sort(own["numbers"][0] - own["last_seen"][live])
        assert (health.rows, health.dim, health.ids) == (len(own["keys"]), 8, len(live))
        assert health.bytes == len(own["keys"]) * 36
        accumulators = of_state[f"{name}/accumulator"][live]
        assert health.untrained == np.count_nonzero(accumulators == 0)
        assert health.not_finite == 0
        for values, quantiles in ((counts, health.counts), (ages, health.ages)):
            assert quantiles is not None
            for share, value in zip(QUANTILES, quantiles, strict=True):
                assert value == values[max(0, int(np.ceil(share * len(values))) - 1)]
        assert health.norms is not None
        np.testing.assert_allclose(health.norms, found_quantiles(norms[name][live]), rtol=1e-6)
        assert health.top_1_percent == pytest.approx(counts[-1] / counts.sum())
        tenth = max(1, round(len(live) / 10))
        assert health.top_10_percent == pytest.approx(counts[-tenth:].sum() / counts.sum())
    cities = found["cities"]
    assert (cities.ids, cities.counts, cities.ages, cities.top_1_percent) == (None,) * 4
    never = np.count_nonzero(of_state["cities/accumulator"] == 0)
    assert cities.untrained == never


def found_quantiles(values: np.ndarray) -> list[float]:
    ordered = np.sort(values)
    return [ordered[max(0, int(np.ceil(share * len(ordered))) - 1)] for share in QUANTILES]
