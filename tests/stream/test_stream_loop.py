"""Processes agree on what comes next in a stream while their devices compute."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import Any

import jax
import pytest
from journaled_job import train

from dlrm_jax import processes
from dlrm_jax.host_exchange import HostExchange, LostProcessError
from dlrm_jax.stream import loop, run
from dlrm_jax.stream.agreement import Due, Found, Own, agree
from dlrm_jax.stream.step import PrequentialStep, make_prequential_step
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.loop import finite_loss


def follow(exchange: HostExchange) -> None:
    """The other process, which has each batch, until the first one ends."""
    with contextlib.suppress(LostProcessError):
        while True:
            agree(Own(Found.BATCH, 0, Due(0)), exchange)


def events_of_two_processes(
    monkeypatch: pytest.MonkeyPatch, mesh: str, segments: Path, workdir: Path
) -> list[tuple[str, int]]:
    """In their order: steps started and losses read, by step."""
    events: list[tuple[str, int]] = []
    pair = socket.socketpair()
    own, other = (HostExchange(index, {1 - index: each}) for index, each in enumerate(pair))

    def noting_step(learner: Learner) -> PrequentialStep:
        step = make_prequential_step(learner)

        def noted(*given: Any) -> tuple[Any, Any, Any]:
            events.append(("start", 1 + sum(what == "start" for what, _ in events)))
            return step(*given)

        return noted

    def noting_loss(loss: jax.Array, step: int, sample_weights: jax.Array) -> float:
        events.append(("read", step))
        return finite_loss(loss, step, sample_weights)

    monkeypatch.setattr(run, "connected", lambda: own)
    monkeypatch.setattr(run, "make_prequential_step", noting_step)
    monkeypatch.setattr(loop, "finite_loss", noting_loss)
    thread = threading.Thread(target=follow, args=(other,))
    thread.start()
    try:
        train("hashed", segments, workdir, mesh=mesh, steps=5, journal_seconds=0.0)
    finally:
        own.close()
    thread.join(60)
    for each in pair:
        each.close()
    assert not thread.is_alive()
    return events


def test_the_next_steps_start_before_a_result_is_read(monkeypatch, segments, tmp_path):
    def on_devices(*_: object) -> None:
        raise AssertionError("devices would begin this exchange when they have ended the steps")

    monkeypatch.setattr(processes, "begun", on_devices)
    assert events_of_two_processes(monkeypatch, "1x1", segments, tmp_path) == [
        ("start", 1), ("start", 2), ("start", 3), ("read", 1), ("start", 4), ("read", 2),
        ("start", 5), ("read", 3), ("read", 4), ("read", 5),
    ]  # fmt: skip


def test_several_emulated_devices_have_one_step_at_a_time(monkeypatch, segments, tmp_path):
    assert events_of_two_processes(monkeypatch, "1x2", segments, tmp_path) == [
        (what, step) for step in range(1, 6) for what in ("start", "read")
    ]
