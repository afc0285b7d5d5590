"""Devices don't wait for the host to read losses and predictions; no state is kept before that."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saved_run import CONFIG, examples, learner_on
from setups import step_of, with_one_wrong_copy

from dlrm_jax import processes
from dlrm_jax.agreements import Agreements
from dlrm_jax.data.batches import Batch, TrainBatches
from dlrm_jax.errors import UserError
from dlrm_jax.signals import Interrupted, check
from dlrm_jax.training.evaluation import predictions
from dlrm_jax.training.learner import TrainState
from dlrm_jax.training.loop import Intervals, finite_loss, train
from dlrm_jax.training.step import make_predict


def events_of_training(
    mesh: str,
    bad_step: int = 0,
    validated: int = 0,
    stop: bool = False,
    keeps: bool = True,
    stop_in: int = 0,
) -> list[tuple[str, int]]:
    """In their order: steps started, losses read, validations and states kept, by step.

    Args:
        mesh: mesh to run on.
        bad_step: step whose loss isn't finite; 0 for none.
        validated: steps between validations; 0 for one at the end.
        stop: whether each validation gets a SIGTERM.
        keeps: whether states are saved.
        stop_in: step that gets a SIGTERM when it is started; 0 for none.
    """
    learner = learner_on(mesh)
    run_step, events = step_of(learner), []

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        events.append(("start", int(state.step) + 1))
        if events[-1] == ("start", stop_in):
            os.kill(os.getpid(), signal.SIGTERM)
        state, loss = run_step(state, batch)
        return state, loss * float("nan") if events[-1] == ("start", bad_step) else loss

    def validate(state: TrainState) -> Mapping[str, Any]:
        events.append(("validate", int(state.step)))
        if stop:
            os.kill(os.getpid(), signal.SIGTERM)
            check()  # as after each batch
        return {"auc": 0.5}

    def record(step: int, split: str, metrics: Mapping[str, Any]) -> None:
        if split == "train":
            events.append(("read", step))

    def keep(state: TrainState, *_: object) -> bool:
        events.append(("keep", int(state.step)))
        return keeps

    batches = TrainBatches(examples(512), CONFIG.batch_size, seed=0)
    try:
        train(
            learner,
            train_step,
            learner.init(0),
            batches,
            steps=6,
            intervals=Intervals(log=1, evaluate=validated, checkpoint=4),
            validate=validate,
            keep=keep,
            record=record,
        )
    except UserError as error:
        events.append((str(error), 0))
    except Interrupted as request:
        events.append(("saved" if request.saved else "stopped", 0))
    return events


def test_a_signal_while_the_last_checkpoint_is_written_finds_all_saved():
    def keep(*_: object) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    learner = learner_on("1x1")
    with pytest.raises(Interrupted) as caught:
        train(
            learner,
            step_of(learner),
            learner.init(0),
            TrainBatches(examples(512), CONFIG.batch_size, seed=0),
            steps=1,
            intervals=Intervals(log=1, evaluate=0, checkpoint=0),
            validate=lambda state: {"auc": 0.5},
            keep=keep,
            record=lambda *_: None,
        )
    assert caught.value.saved


def test_the_compiling_step_does_not_count(capsys: pytest.CaptureFixture[str]):
    """Neither in the speed nor in the time that is left."""
    learner = learner_on("1x1")
    run_step, shown, now = step_of(learner), [], [0.0]

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        now[0] += 1000 if int(state.step) == 0 else 15
        return run_step(state, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: now[0])
        patch.setattr(time, "monotonic", lambda: now[0])
        train(
            learner,
            train_step,
            learner.init(0),
            TrainBatches(examples(512), CONFIG.batch_size, seed=0),
            steps=6,
            intervals=Intervals(log=1, evaluate=0, checkpoint=1),
            validate=lambda _: {"auc": 0.5},
            keep=lambda *each: shown.append(each[3]) is None,
            record=lambda *_: None,
        )
    assert shown == [None, *[CONFIG.batch_size / 15] * 5]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("compiled")
    assert [line.rpartition("examples/s  ")[2] for line in lines[1:]] == [
        f"{left} s left" for left in (60, 45, 30, 15, 0)
    ]


def test_one_device_goes_from_step_to_step():
    assert events_of_training("1x1") == [
        ("start", 1), ("start", 2), ("start", 3), ("read", 1),
        ("start", 4), ("read", 2), ("read", 3), ("read", 4), ("keep", 4),
        ("start", 5), ("start", 6), ("read", 5), ("read", 6), ("validate", 6), ("keep", 6),
    ]  # fmt: skip


def test_processes_agree_on_a_stop_without_waiting_for_the_step_before():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "is_distributed", lambda: True)
        events = events_of_training("1x1", stop_in=2)
    # What is asked after step 2 is answered after step 4, when the loss of step 2 is read.
    assert events[:7] == [
        ("start", 1), ("start", 2), ("start", 3), ("read", 1), ("start", 4), ("read", 2),
        ("read", 3),
    ]  # fmt: skip
    assert events[7:] == [("read", 4), ("keep", 4), ("saved", 0)]


def test_answers_come_some_steps_later():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "is_distributed", lambda: True)
        agreements, found = Agreements(2, questions=2), []
        for step in range(9):
            agreements.ask([step >= 1, 7 * (step == 3)])  # due until it is done; and once
            if step >= 2:
                found.append(tuple(agreements.answers()))
    assert found == [(0, 0), (1, 0), (0, 0), (0, 7), (1, 0), (0, 0), (0, 0)]
    alone = Agreements(2, questions=1)
    assert alone.behind == 0, "one process needs to wait for no other"
    alone.ask([3])
    assert alone.answers() == [3]


def test_several_emulated_devices_have_one_program_at_a_time():
    events = events_of_training("2x4")
    steps = [event for event in events if event[0] in ("start", "read")]
    assert steps == [(what, step) for step in range(1, 7) for what in ("start", "read")]


def test_what_follows_a_loss_that_is_not_finite_is_not_kept():
    events = events_of_training("1x1", bad_step=3)
    assert events[-1][0].startswith("the loss of step 3 is nan")
    assert ("start", 4) in events, "it has run ahead"
    assert not any(what == "keep" for what, _ in events)


class WithoutWeight(TrainBatches):
    """Batches of which the fifth has no weight."""

    def __getitem__(self, step: int) -> Batch:
        batch = super().__getitem__(step)
        return batch._replace(sample_weights=(step != 4) * batch.sample_weights)


def trained(
    mesh: str,
    change: Callable[[TrainState], TrainState] = lambda state: state,
    kind: type[TrainBatches] = TrainBatches,
    check_copies: int = 2,
) -> tuple[list[int], str]:
    """The steps whose states were kept, and the error, of a run that changes its state."""
    learner, kept = learner_on(mesh), []
    run_step = step_of(learner)
    batches = kind(examples(512), CONFIG.batch_size, seed=0)
    try:
        train(
            learner,
            lambda state, batch: run_step(change(state), batch),
            learner.init(0),
            batches,
            steps=6,
            intervals=Intervals(log=1, evaluate=0, checkpoint=4, check_copies=check_copies),
            validate=lambda state: {"auc": 0.5},
            keep=lambda state, *_: kept.append(int(state.step)) is None,
            record=lambda *_: None,
        )
    except UserError as error:
        return kept, str(error)
    return kept, ""


@pytest.mark.parametrize(
    ("before_step", "kept", "found"),
    [pytest.param(4, [], 4, marks=pytest.mark.thorough), (5, [4], 6)],
)
def test_copies_of_a_table_that_differ_end_the_run(before_step: int, kept: list[int], found: int):
    def change(state: TrainState) -> TrainState:
        if int(state.step) + 1 != before_step:
            return state
        tables = {name: with_one_wrong_copy(x) for name, x in state.embedding.tables.items()}
        embedding = dataclasses.replace(state.embedding, tables=tables)
        return dataclasses.replace(state, embedding=embedding)

    saved, message = trained("2x2", change)
    assert saved == kept
    assert message.startswith(f"after step {found}, the copies of table(s) C1 and of table(s) C2")


def test_wrong_parameters_end_the_run():
    def change(state: TrainState) -> TrainState:
        params = jax.tree.map(with_one_wrong_copy, state.params)
        return dataclasses.replace(state, params=params)

    assert trained("2x1", change, check_copies=0) == ([4, 6], ""), "0 is never"
    _, message = trained("2x1", change)
    assert message.startswith("after step 2, the copies of the dense model differ between devices")


@pytest.mark.thorough
def test_a_batch_without_weight_is_one_error():
    kept, message = trained("2x2", kind=WithoutWeight)
    assert kept == [4]
    assert message.startswith("the weights of the examples of step 5 sum to zero")


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (
            1e38,
            "the weights of the examples of step 5 sum to inf, too much to average in float",
        ),
        (3e31, "the weights of the examples of step 5 sum to 1.2e+32, too much to average"),
        (1e-44, "the weights of the examples of step 5 sum to zero in float32, so it has no"),
        (1.0, "the loss of step 5 is nan; lower the learning rate"),
    ],
)
def test_weights_that_have_no_average_are_named(weight: float, message: str):
    with pytest.raises(UserError) as error:
        finite_loss(jnp.float32(np.nan), 5, jnp.full(4, weight, jnp.float32))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(("keeps", "said"), [(True, "saved"), (False, "stopped")])
def test_a_signal_in_a_validation_waits_for_the_checkpoint(keeps: bool, said: str):
    events = events_of_training("1x1", validated=3, stop=True, keeps=keeps)
    assert events[-3:] == [("validate", 3), ("keep", 3), (said, 0)]


@pytest.mark.parametrize(("mesh", "ahead"), [("1x1", 2), ("2x4", 0)])
def test_predictions_run_ahead(mesh: str, ahead: int):
    learner = learner_on(mesh)
    predict, started = make_predict(learner), []

    def counted(state: TrainState, batch: Batch) -> jax.Array:
        started.append(batch)
        return predict(state, batch)

    found = predictions(learner, counted, learner.init(0), examples(64 * 5 - 1), 64)
    sizes, counts = zip(*((len(logits), len(started)) for logits in found), strict=True)
    assert sizes == (64, 64, 64, 64, 63)
    assert counts == tuple(min(5, i + ahead) for i in range(1, 6))
