"""What evaluations lead to: an end before the last step, or a smaller learning rate."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saved_run import CONFIG, examples

from dlrm_jax.config import Config
from dlrm_jax.data.batches import TrainBatches
from dlrm_jax.embedding.optimizer import SGD, RowWiseAdagrad, at_rate
from dlrm_jax.mesh import make_mesh
from dlrm_jax.run_continued import Continued
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.step import make_train_step
from dlrm_jax.training.stopping import Improvement, Stopping, factor_of

NAN = float("nan")
CUT = dataclasses.replace(CONFIG, table_optimizers=("C1=adam:0.05", "C3=sgd:4"))


@pytest.mark.parametrize(
    ("metric", "values", "plateau_patience", "expected"),
    [
        ("auc", [0.5, 0.6, 0.6], 0, (0.6, 1, 1, 0)),
        ("auc", [0.6, 0.5, 0.5, 0.5, 0.5], 2, (0.6, 4, 0, 2)),
        ("auc", [0.6, 0.5, 0.5, 0.7, 0.5], 2, (0.7, 1, 1, 1)),
        ("auc", [NAN, None, 0.5], 2, (0.5, 0, 0, 1)),
        ("log_loss", [0.5, 0.4, 0.45, 0.3], 0, (-0.3, 0, 0, 0)),
    ],
)
def test_evaluations_are_counted(
    metric: str, values: list[Any], plateau_patience: int, expected: tuple
):
    found = Improvement(metric)
    for value in values:
        found = found.after({metric: value}, plateau_patience)
    assert dataclasses.astuple(found)[1:5] == expected


def stopping(said: list[str], noted: Any = None, total: int = 1000, **changes: Any) -> Stopping:
    config = Config(eval_every=10, **changes)
    return Stopping(config, total, noted, said.append, lambda *line: said.append(str(line)))


def test_a_cut_is_said_and_recorded_and_the_run_ends_later():
    said: list[str] = []
    ends = stopping(said, plateau_factor=0.5, plateau_patience=1, patience=2)
    factors = []
    for step, auc in ((10, 0.5), (15, 0.9), (20, 0.4)):  # step 15 is the end of an earlier part
        assert not ends(step, {"auc": auc})
        factors.append(ends.rate_factor)
    assert factors == [1, 1, 0.5]
    assert [type(factor) for factor in factors] == [np.float32] * 3, "else another compilation"
    assert said == [
        "step 20: auc was not better in 1 evaluation; the learning rate is 0.5 of its schedule "
        "from here on",
        "(20, 'learning_rate', {'factor': 0.5})",
    ]
    assert ends(30, {"auc": 0.4})
    assert ends.reason == "auc was not better in 2 evaluations (patience)"
    assert said[-1] == f"step 30: {ends.reason}; the run ends"


def test_what_a_checkpoint_notes_is_gone_on_from():
    noted = {
        "validation": None,
        "improvement": dataclasses.asdict(Improvement("auc", 0.5, 3, 1, 2, 0.25)),
    }
    found = stopping([], noted, plateau_factor=0.5, patience=4)
    assert (found.rate_factor, found.noted["improvement"]) == (0.25, noted["improvement"])
    assert found.reason is None
    assert stopping([], {"validation": None}).rate_factor is None, "nothing is multiplied"
    assert stopping([], noted, patience=3).reason, "also with a patience that is smaller now"
    other = stopping([], noted, plateau_factor=0.5, best_metric="log_loss")
    assert other.improvement == Improvement("log_loss", cuts=2, factor=0.25), "no comparison"
    assert stopping([], {"validation": {"auc": 0.8}}, target_auc=0.8).reason
    assert stopping([], {"validation": {"auc": None}}, target_auc=0.8).reason is None


@pytest.mark.parametrize(("plateau_factor", "after_a_cut"), [(0.0, 0.125), (0.9, 0.1125)])
def test_cuts_stay_in_a_run_that_continues(plateau_factor: float, after_a_cut: float):
    """By the factor that they had, whatever the new run cuts by, or if it cuts no more."""
    improvement = dataclasses.asdict(Improvement("auc", 0.5, cuts=3, factor=0.125))
    noted = {"config": {"plateau_factor": 0.5}, "improvement": improvement, "validation": None}
    old = {x: y for x, y in improvement.items() if x != "factor"}
    earlier = noted | {"improvement": old}  # as earlier versions noted it
    assert factor_of(noted) == factor_of(earlier) == 0.125
    assert factor_of({"config": {"plateau_factor": 0.0}, "improvement": old}) == 1
    continued = Continued("source", "checkpoint", 5, 3, factor=factor_of(noted)).noted
    for start in (continued, noted, earlier):
        ends = stopping([], start, plateau_factor=plateau_factor, plateau_patience=1)
        assert ends.rate_factor == np.float32(0.125)
        ends(10, {"auc": 0.7})
        ends(20, {"auc": 0.6})
        assert ends.rate_factor == np.float32(after_a_cut)


@pytest.mark.parametrize(("total", "warned"), [(30, True), (31, False)])
def test_a_patience_that_a_run_is_too_short_for(total: int, warned: bool):
    found = stopping([], total=total, patience=2).warning
    assert bool(found) == warned
    if found:
        assert found.startswith("warning: patience=2 has no effect in 30 steps with an evaluat")
    both = stopping([], total=30, patience=3, plateau_factor=0.5, plateau_patience=2).warning
    assert both
    assert both.startswith("warning: patience=3 and plateau_patience=2 have no effect in 30 steps")


@pytest.mark.parametrize(
    ("mesh", "changes"),
    [
        ("2x4", {}),
        *(
            pytest.param(mesh, changes, marks=pytest.mark.thorough)
            for mesh, changes in (
                ("1x1", {}),
                ("2x2", {"accumulation_steps": 2, "clip_norm": 0.01}),
                ("1x8", {"dense_optimizer": "adamw"}),
            )
        ),
    ],
)
def test_a_factor_makes_all_changes_smaller_without_a_compilation(mesh: str, changes: dict):
    """With Adam, SGD and row-wise Adagrad on a placement each, and the dense model."""
    config = dataclasses.replace(CUT, **changes)
    learner = make_learner(config, make_mesh(mesh))
    step = make_train_step(learner)
    batch = learner.put(TrainBatches(examples(64), config.batch_size, seed=0)[0])

    def numbers(factor: float | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Those that change by the rate, and the state of optimizers."""
        state = learner.init(0)
        if factor is not None:
            state, _ = step(state, batch, np.float32(factor))
        found = (state.params, state.embedding.tables), (state.optimizer, state.embedding.slots)
        rates, slots = (jax.tree.map(np.array, jax.tree.leaves(x)) for x in found)
        return [x.astype(np.float64) for x in rates], slots

    (before, _), (whole, slots), (part, same) = numbers(None), numbers(1.0), numbers(0.25)
    tolerance = 1e-6
    for old, new, found in zip(before, whole, part, strict=True):
        assert np.any(new != old)
        np.testing.assert_allclose(found - old, 0.25 * (new - old), atol=tolerance)
    for expected, found in zip(slots, same, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert step._cache_size() == 1  # pyright: ignore[reportFunctionMemberAccess]


@pytest.mark.parametrize("make", [SGD, RowWiseAdagrad])
def test_native_updates_get_the_smaller_rate(make: Any):
    schedule = make(lambda step: 0.5 * step)
    for optimizer, rate in ((make(2.0), 2.0), (schedule, 1.5)):
        scaled: Any = at_rate(optimizer, jnp.float32(0.25))
        assert math.isclose(scaled.learning_rate(jnp.int32(3)), 0.25 * rate)
        assert at_rate(optimizer, None) is optimizer
