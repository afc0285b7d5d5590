"""Trains a model of requests in one of several processes; started by `test_request_run`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from random_requests import random_requests

from dlrm_jax.coordinator import join
from dlrm_jax.mesh import as_mesh, emulate_devices
from dlrm_jax.processes import is_process_0
from dlrm_jax.requests.requests import split_of
from dlrm_jax.requests.run import run
from dlrm_jax.requests.settings import RequestSettings

DEVICES, MESH = 4, "2x2"
REQUESTS = random_requests(60, longest=20, most=4)
assert REQUESTS.times is not None
SPLIT = split_of(REQUESTS.times)
SETTINGS = RequestSettings(
    encoder="mean", width=4, max_length=15, history_sampling=5, batch_size=16, epochs=4, mlp=(8,),
    eval_length=20, learning_rate=0.01,
)  # fmt: skip


def main(coordinator: str, count: int, index: int, directory: Path) -> None:
    emulate_devices(DEVICES, count)
    join(coordinator, count, index)
    outcome = run(REQUESTS, SPLIT, SETTINGS, as_mesh(MESH), directory / "run", lambda _: None)
    logits = outcome.evaluation.logits(outcome.state, np.arange(len(REQUESTS)))
    if is_process_0():
        np.savez(directory / "logits.npz", allow_pickle=False, logits=logits)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
