"""A file notes what decides predictions and no tensor tells; a run of it predicts as before."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from converted import DCN, DLRM
from in_memory import InMemory
from in_process import run_command
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from saved_run import examples

from dlrm_jax.config import Config
from dlrm_jax.conversion.exported import Exporter
from dlrm_jax.conversion.foreign_model import ForeignModel
from dlrm_jax.conversion.model_note import ModelNote
from dlrm_jax.conversion.own_model import OwnModel
from dlrm_jax.conversion.tensor_names import Format
from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor

MEAN = dataclasses.replace(DLRM, pooling="mean")
NARROW = dataclasses.replace(DLRM, embedding_dim=2, bottom_mlp=(6, 2))  # six of both interactions
KINDS: dict[str, tuple[Config, Format]] = {
    "mean": (MEAN, "torchrec"),
    "cat": (dataclasses.replace(NARROW, interaction="cat"), "dlrm"),
    "self": (dataclasses.replace(DLRM, self_interaction=True), "dlrm"),
    "dcn": (dataclasses.replace(DCN, pooling="mean", compute_dtype="bfloat16"), "torchrec"),
}


@pytest.fixture
def convert(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return functools.partial(run_command, monkeypatch, "convert")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("note") / "mean.safetensors"
    Exporter(OwnModel.of(InMemory.of(MEAN)), "torchrec").write(path)
    return path


@pytest.mark.parametrize(
    "kind",
    [x if x == "mean" else pytest.param(x, marks=pytest.mark.thorough) for x in KINDS],
)
def test_a_run_of_the_file_predicts_as_before(kind: str, convert, tmp_path: Path):
    config, form = KINDS[kind]
    model = InMemory.of(config, kept_negatives=0.3)
    Exporter(OwnModel.of(model), form).write(tmp_path / "x.safetensors")
    convert(f"--checkpoint={tmp_path}/x.safetensors", f"--output={tmp_path}/run")
    found = Predictor.load(tmp_path / "run", batch_size=64)
    assert found.config.table_bag_lengths == (1, 3, 2)
    for name in ("pooling", "interaction", "self_interaction", "compute_dtype"):
        assert getattr(found.config, name) == getattr(config, name)
    rows = examples(60, seed=1, config=config)
    expected = model.predictor(64).predict(rows)
    assert np.ptp(expected) > 0.01, "nothing to compare"
    np.testing.assert_allclose(found.predict(rows), expected, rtol=0, atol=1e-7)


def test_the_config_counts_more(file: Path, convert, tmp_path: Path, capsys):
    settings, run = tmp_path / "settings.json", tmp_path / "run"
    settings.write_text(json.dumps({"pooling": "sum"}))
    convert(f"--checkpoint={file}", f"--config={settings}", f"--output={run}")
    printed = capsys.readouterr().out
    assert "noted in the file: compute_dtype=float32, bag_lengths=1,3,2\n" in printed
    assert "--config replaces what is noted in the file: pooling=mean\n" in printed
    assert "not from the file: pooling=sum\n" in printed
    assert Predictor.load(run).config.pooling == "sum"


def test_other_files_have_no_note(file: Path, convert, tmp_path: Path, capsys):
    """Nor those of earlier versions, which noted the tables alone."""
    with safe_open(file, "numpy") as opened:
        metadata = {"tables": opened.metadata()["tables"]}
    save_file(load_file(file), tmp_path / "x.safetensors", metadata)
    assert ForeignModel.open(tmp_path / "x.safetensors").note is None
    convert(f"--checkpoint={tmp_path}/x.safetensors", f"--output={tmp_path}/run")
    printed = capsys.readouterr().out
    assert "not from the file: bag_lengths=1, pooling=sum\n" in printed
    assert "noted" not in printed


def test_an_artifact_notes_what_it_knows():
    model = dataclasses.replace(OwnModel.of(InMemory.of(MEAN)), compute_dtype="", interactions=())
    assert ModelNote.of(model, ["a", "b", "c"]) == ModelNote(
        {"pooling": "mean"}, {"a": 1, "b": 3, "c": 2}, 1.0
    )
    mixed = (dataclasses.replace(model.reads[1], pooling="sum"), *model.reads[1:])
    assert "pooling" not in ModelNote.of(dataclasses.replace(model, reads=mixed), "abc").settings


ILL: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "later": (lambda x: x.update(rank=3), "can't be used: a later version .*, with rank"),
    "no pooling": (lambda x: x.update(pooling="max"), "can't be used: pooling: expected"),
    "no number": (lambda x: x["bag_lengths"].update(t_C1="a"), "can't be used: bag_lengths: ex"),
    "too low": (lambda x: x["bag_lengths"].update(t_C1=0), "bag_lengths: expected at least 1"),
    "a table less": (lambda x: x["bag_lengths"].pop("t_C1"), "expected one for each table, got"),
    "no lengths": (lambda x: x.update(bag_lengths=3), "is damaged: AttributeError"),
    "none": (lambda x: x.pop("kept_negatives"), "is damaged: KeyError"),
    "a share": (lambda x: x.update(kept_negatives=1.5), "expected a share of them, got 1.5"),
    "NaN": (lambda x: x.update(kept_negatives=float("nan")), "expected a share of them, got nan"),
}


@pytest.mark.parametrize("ill", ILL)
def test_a_note_that_cannot_be_used(ill: str, file: Path, tmp_path: Path):
    change, message = ILL[ill]
    with safe_open(file, "numpy") as opened:
        metadata = opened.metadata()
    note = json.loads(metadata["dlrm_jax"])
    change(note)
    changed = metadata | {"dlrm_jax": json.dumps(note)}
    save_file(load_file(file), tmp_path / "x.safetensors", changed)
    with pytest.raises(UserError, match=f"x.safetensors: what it notes of the model .*{message}"):
        ForeignModel.open(tmp_path / "x.safetensors")


@pytest.mark.parametrize("text", ["", "3", "[]", "{", "[" * 100_000])
def test_a_note_that_is_damaged(text: str):
    with pytest.raises(UserError, match=r"x: what it notes of the model is damaged"):
        ModelNote.read("x", text, ["a"])
