"""Programs of the step for accelerators write each row once; needs their compilers."""

from __future__ import annotations

import re

import pytest
import setups
from setups import Setup

from dlrm_jax.targets import lacks, target_mesh
from dlrm_jax.training.compiled import lower_step

_SCATTER = re.compile(r" scatter\(")


@pytest.mark.parametrize("target", ["h100", "tpu_v5e"])
@pytest.mark.parametrize(
    "setup",
    [
        Setup("2x4", "rowwise_adagrad", dtype="float32"),
        Setup("2x4", "sgd", placed="devices", dtype="float32"),
    ],
    ids=["mixed", "fully_sharded"],
)
def test_no_row_is_added_to_twice(setup: Setup, target: str, monkeypatch: pytest.MonkeyPatch):
    if missing := lacks(target):
        pytest.skip(missing)
    mesh = target_mesh(target, (2, 4))
    monkeypatch.setattr(setups, "make_mesh", lambda _: mesh)
    text = lower_step(setup.learner(), 64, setups.DENSE).compile().as_text()
    assert text is not None
    scatters = [line for line in text.splitlines() if _SCATTER.search(line)]
    assert scatters
    assert all("unique_indices=true" in line for line in scatters), scatters
