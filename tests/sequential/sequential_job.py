"""Trains a model of sequences in one of several processes; started by `test_sequential_run`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
from planted_histories import LOG, SETTINGS, SPLIT

from dlrm_jax.coordinator import join
from dlrm_jax.mesh import as_mesh, emulate_devices
from dlrm_jax.processes import is_process_0
from dlrm_jax.sequential.run import run

DEVICES, MESH = 4, "2x2"


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
