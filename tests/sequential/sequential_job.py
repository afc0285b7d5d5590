"""Trains a model of sequences in one of several processes; started by `test_sequential_run`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np

from dlrm_jax.mesh import as_mesh, emulate_devices
from dlrm_jax.processes import is_process_0, join
from dlrm_jax.sequential.questions import split_of
from dlrm_jax.sequential.run import run
from dlrm_jax.sequential.settings import SequentialSettings
from experiments.next_item.planted_order import generate, planted_order

DEVICES, MESH = 4, "2x2"
ORDER = planted_order(30, 0)
LOG = generate(ORDER, users=64, longest=20, seed=1)
SPLIT = split_of(LOG, "leave_one_out")
SETTINGS = SequentialSettings(
    encoder="sasrec", width=16, layers=1, max_length=20, batch_size=16, epochs=4, dropout=0.1,
    learning_rate=0.02, patience=0, at=(5,), metric="ndcg@5",
)  # fmt: skip


def main(coordinator: str, count: int, index: int, directory: Path) -> None:
    emulate_devices(DEVICES, count)
    join(coordinator, count, index)
    settings = dataclasses.replace(SETTINGS, epochs=2)
    outcome = run(LOG, SPLIT, settings, as_mesh(MESH), directory / "run", lambda _: None)
    rows = outcome.evaluation.items(outcome.state)
    if is_process_0():
        np.savez(directory / "rows.npz", allow_pickle=False, rows=rows)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
