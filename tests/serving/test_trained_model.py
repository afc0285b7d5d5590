"""A run is read for export wherever it lies and whatever goes on beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.serving.trained_model import DenseModel, TrainedModel

RUN = Path(__file__).parents[1] / "previous" / "run_of_format_3"


def test_tables_need_no_memory_of_an_accelerator(monkeypatch: pytest.MonkeyPatch):
    """Plans are made for the memory of their devices, and would refuse large tables."""

    def devices(platform: str | None = None, backend: str | None = None) -> list[Any]:
        if (platform or backend) != "cpu":
            raise AssertionError("accelerators are asked for")
        return cpus

    cpus = jax.devices()
    for name in ("devices", "local_devices"):
        monkeypatch.setattr(jax, name, devices)
    model = TrainedModel.read(RUN)
    assert [*model.learner.mesh.devices.flat] == cpus[:1]

    def none(platform: str | None = None, backend: str | None = None) -> list[Any]:
        if platform is None and backend is None:
            return cpus
        raise RuntimeError(f"Unknown backend {platform or backend}")

    for name in ("devices", "local_devices"):
        monkeypatch.setattr(jax, name, none)
    with pytest.raises(UserError, match=r"Unknown backend cpu; add cpu to JAX_PLATFORMS"):
        TrainedModel.read(RUN)


def test_arrays_of_one_name():
    """The other one would have been left out."""
    params = {"a.b": {"c": np.zeros(1)}, "a": {"b.c": np.ones(1)}}
    with pytest.raises(UserError, match=r"unique, a\.b\.c came twice: rename an attribute"):
        DenseModel(TrainedModel.read(RUN).learner, params, {})


def test_a_checkpoint_that_its_run_deletes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    checkpoint = tmp_path / "run" / "checkpoints" / "00000006"
    shutil.copytree(RUN, tmp_path / "run")
    model = TrainedModel.read(tmp_path / "run")
    shutil.copytree(checkpoint, newer := checkpoint.with_name("00000009"))
    message = f"00000006 has gone while it was read: .* the latest is {newer} now. Run the same"

    def delete(*_: object) -> None:
        shutil.rmtree(checkpoint, ignore_errors=True)

    delete()
    with pytest.raises(UserError, match=message):
        _ = model.dense
    with pytest.raises(UserError, match=message):
        next(model.tables())
    shutil.copytree(newer, checkpoint)
    monkeypatch.setattr("dlrm_jax.inference.loading.release_memory", delete)
    with pytest.raises(UserError, match=message):
        Predictor.load(checkpoint)
    newer.rename(newer.with_name("elsewhere"))
    with pytest.raises(UserError, match=r"nor its best\. Run the same command again"):
        _ = model.dense
