"""``dlrm_jax convert``: a run that goes out as a file and comes in again is the same model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dlrm_jax.config import Config
from dlrm_jax.conversion.own_model import OwnModel
from dlrm_jax.data.directory import load_directory
from dlrm_jax.embedding import EmbeddingCollection
from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.inference.runs import find_checkpoint
from dlrm_jax.mesh import make_mesh
from dlrm_jax.run_continued import start_from
from dlrm_jax.saved_config import file_fields, trained_config
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.learner import TrainState
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.warm_start import warm_start

PREVIOUS = Path(__file__).parents[1] / "previous"
RUN, DATA = PREVIOUS / "run_of_format_3", PREVIOUS / "data"


def test_out_and_in_again(command, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file, run = tmp_path / "model.safetensors", tmp_path / "run"
    command("convert", f"--checkpoint={RUN}", "--format=torchrec", f"--output={file}")
    assert "embedding_bags.t_C1.weight" in capsys.readouterr().out
    command("convert", f"--checkpoint={file}", f"--data={DATA}", f"--output={run}")
    printed = capsys.readouterr().out
    assert (
        f"{file}: torchrec, embedding_dim=4, dense_features=1, bottom_mlp=4, top_mlp=4,1" in printed
    )
    assert "embedding_bags.t_C3.weight    word    14    4" in printed
    assert "noted in the file: compute_dtype=float32, pooling=sum\n" in printed
    assert "\nfrom the data: bag_lengths=1\n" in printed
    assert "not from the file" not in printed
    assert printed.endswith("export --run or train --continue_from or --warm_start\n")
    assert "put into the order of pairs here" in printed
    predictor = Predictor.load(run)
    found = predictor.predict(PREVIOUS / "raw.csv")  # the vocabularies are there, too
    with np.load(PREVIOUS / "expected.npz") as before:  # of the run
        np.testing.assert_allclose(found, before["probabilities"], rtol=1e-5)
    assert file_fields(run / "config.json")["top_mlp"] == (4, 1)
    checkpoint = find_checkpoint(run)
    metadata = read_metadata(checkpoint)
    assert metadata["converted_from"] == {"file": str(file), "format": "torchrec"}
    learner = make_learner(trained_config(checkpoint, metadata), make_mesh("1x1"))
    state, _ = start_from(run, learner, 0, DATA)  # it knows the ids
    assert np.array_equal(tables_of(learner.collection, state)["city"], original("C2"))


def tables_of(collection: EmbeddingCollection, state: TrainState) -> dict[str, np.ndarray]:
    arrays = collection.to_arrays(state.embedding)
    return {table.name: np.asarray(of_table["table"]) for table, of_table in arrays}


def original(table: str) -> np.ndarray:
    return dict(OwnModel.open(RUN).tables())[table]


@pytest.mark.thorough
def test_a_model_without_data(command, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """It starts a run on any data whose tables have as many rows, and doesn't continue any."""
    file, run = tmp_path / "model.safetensors", tmp_path / "run"
    command("convert", f"--checkpoint={RUN}", "--format=dlrm", f"--output={file}")
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"bag_lengths": [2, 1, 2], "optimizer": "sgd"}))
    command("convert", f"--checkpoint={file}", f"--config={settings}", f"--output={run}")
    printed = capsys.readouterr().out
    assert "noted in the file: compute_dtype=float32, pooling=sum\n" in printed
    assert "--config replaces what is noted in the file: bag_lengths=1\n" in printed
    assert "not from the file: bag_lengths=2,1,2\n" in printed
    assert printed.endswith("export --run or train --warm_start\n")
    checkpoint = find_checkpoint(run)
    config = trained_config(checkpoint, read_metadata(checkpoint))
    assert (config.table_rows, config.bag_lengths) == ((42, 6, 14), (2, 1, 2))
    learner = make_learner(config, make_mesh("1x1"))
    state = warm_start(learner, 3, checkpoint, ["all"], [load_directory(DATA).fingerprint])
    assert np.array_equal(tables_of(learner.collection, state)["C2"], original("C2"))
    with pytest.raises(UserError, match=f"convert it again with --data={DATA}"):
        start_from(run, learner, 0, DATA)
    raw, predicted = PREVIOUS / "raw.csv", f"--output={tmp_path / 'p.csv'}"
    for name, *arguments in (  # each used to send the user to another one
        ("predict", f"--data={raw}", predicted),
        ("predict", f"--data={raw}", predicted, f"--preprocessing={DATA}"),
        ("predict", f"--data={DATA}", predicted),
        ("evaluate", f"--data={raw}"),
        ("evaluate", f"--data={DATA}"),
    ):
        with pytest.raises(UserError, match=r"00000000 was converted without .*with --data=DIR"):
            command(name, f"--checkpoint={run}", *arguments)
    with pytest.raises(UserError, match="the model was converted without data"):
        Predictor.load(run).predict(raw)
    output = f"--output={tmp_path / 'new'}"
    for arguments, message in (
        ([f"--checkpoint={file}", output, "--format=torchrec"], "expected 'torchrec', got 'dlrm'"),
        (
            [f"--checkpoint={file}", output, "--format=onnx"],
            "expected a run or an artifact, got th",
        ),
        ([f"--checkpoint={file}", output, f"--data={file}"], "--data: expected a directory that"),
        (
            [f"--checkpoint={file}", output, f"--data={DATA}", f"--config={settings}"],
            "bag_lengths has no effect with --data",
        ),
        ([f"--checkpoint={tmp_path}/no", output], "--checkpoint: there is no"),
        ([f"--checkpoint={RUN}", output], "--format is missing: dlrm, torchrec, onnx"),
        ([f"--checkpoint={RUN}", output, "--format=dlrm"], "ends in .pt, .pth or .safetensors"),
        (
            [f"--checkpoint={RUN}", output, "--format=dlrm", f"--data={DATA}"],
            "--data has no effect: the model in .* has its own",
        ),
        ([f"--checkpoint={RUN}", f"--output={file}", "--format=dlrm"], "--output: .* exists"),
    ):
        with pytest.raises(UserError, match=message):
            command("convert", *arguments)
    (tmp_path / "distributed").mkdir()
    (tmp_path / "distributed" / ".metadata").touch()
    with pytest.raises(UserError, match=r"dcp_to_torch .*/distributed model.pt"):
        command("convert", f"--checkpoint={tmp_path / 'distributed'}", output)
    settings.write_text(json.dumps({"rank": 3}))
    with pytest.raises(UserError, match="no setting 'rank'"):
        command("convert", f"--checkpoint={file}", f"--config={settings}", output)
    assert not (tmp_path / "new").exists()
    assert Config().optimizer != "sgd"
