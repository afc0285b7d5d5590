"""The tables of two towers as other commands take them: by value, and into a click model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from in_process import run_command
from small_run import SCHEMA, log

from dlrm_jax.config import Config
from dlrm_jax.data.preprocessing.options import Options as Preparation
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.retrieval.task import Task
from dlrm_jax.run_data import load_data
from dlrm_jax.run_start import Options, first_state
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.learner import TrainState

CONFIG = Config(embedding_dim=8, bottom_mlp=(8,), top_mlp=(4, 1), pooling="mean", batch_size=32)


def started(
    directory: Path, workdir: Path, *names: str, config: Config = CONFIG
) -> dict[str, np.ndarray]:
    """The tables of a new click model that starts from towers, by name."""
    config, data = load_data(config, directory)
    learner = make_learner(config, make_mesh("1x1"))
    options = Options(warm_start=workdir, warm_start_names=names)
    state, *_ = first_state(config, learner, None, data, options, lambda text: None)
    assert isinstance(state, TrainState)
    arrays = learner.collection.to_arrays(state.embedding)
    return {table.name: np.asarray(of_table["table"]) for table, of_table in arrays}


@pytest.fixture(scope="module")
def tables(task: Task, workdir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The rows of the towers' tables, with values."""
    output = tmp_path_factory.mktemp("tables") / "vectors"
    with pytest.MonkeyPatch.context() as patch:
        flags = [f"--checkpoint={workdir}", "--tables=item,user", f"--tables_output={output}"]
        run_command(patch, "predict", *flags, f"--preprocessing={task.data.directory}")
    return {name: pl.read_parquet(output / f"{name}.parquet") for name in ("item", "user")}


def test_tables_have_the_values_of_their_columns(tables: dict, task: Task):
    """Though the towers read some columns, in another order than the data."""
    directory = task.data.directory
    assert directory
    assert task.data.columns.index("item") != 0
    for name, frame in tables.items():
        values = frame.filter(pl.col("meaning") == "value")
        assert set(values["value"]) == set(log()[name].head(480).drop_nulls())
        known = pl.read_parquet(directory / f"vocabularies/{task.data.columns.index(name)}.parquet")
        joined = values.join(known, on="value", suffix="_of_data")
        assert joined["id"].equals(joined["id_of_data"])


def test_without_vocabularies_the_command_says_where_they_are(
    workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    flags = [f"--checkpoint={workdir}", "--tables=item", f"--tables_output={tmp_path / 'a'}"]
    run_command(monkeypatch, "predict", *flags)
    assert "values of the rows are unknown; give the directory" in capsys.readouterr().out


def test_a_click_model_starts_from_tables(tables: dict, task: Task, workdir: Path, tmp_path: Path):
    assert task.data.directory
    found = started(task.data.directory, workdir, "item", "user")
    for name, frame in tables.items():
        rows = frame.sort("id")
        np.testing.assert_array_equal(found[name][rows["id"]], rows["vector"].to_numpy())
    log().write_parquet(tmp_path / "more.parquet")
    options = Preparation(SCHEMA, split="none")
    preprocess([tmp_path / "more.parquet"], tmp_path / "more", options, grow=task.data.directory)
    grown = started(tmp_path / "more", workdir, "item")["item"]
    assert len(grown) > len(found["item"])
    np.testing.assert_array_equal(grown[: len(found["item"])], found["item"])
    preprocess([tmp_path / "more.parquet"], tmp_path / "other", options)
    with pytest.raises(UserError, match=r"the ids of these data .* --grow=OLD_DIR.* trained on$"):
        started(tmp_path / "other", workdir, "item")


def test_an_error_of_widths_names_what_shapes_tables(task: Task, workdir: Path):
    """Though towers have another model, other MLPs and another pooling, too."""
    assert task.data.directory
    wider = dataclasses.replace(CONFIG, embedding_dim=16, bottom_mlp=(16,), pooling="sum")
    with pytest.raises(UserError) as error:
        started(task.data.directory, workdir, "item", config=wider)
    assert str(error.value).endswith("; settings differ: embedding_dim is 8 there and 16 here")


@pytest.mark.parametrize("name", ["all", "bottom"])
def test_layers_of_towers_are_no_layers_of_a_click_model(task: Task, workdir: Path, name: str):
    assert task.data.directory
    with pytest.raises(UserError, match=r"two towers .* --warm_start_names=(\w+,?){3} or some"):
        started(task.data.directory, workdir, name)


def test_a_click_model_does_not_continue_towers(
    task: Task, workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    flags = [f"--data={task.data.directory}", f"--workdir={tmp_path / 'a'}"]
    with pytest.raises(UserError, match=r"click model, but .* is one of two towers"):
        run_command(monkeypatch, "train", *flags, f"--continue_from={workdir}")
