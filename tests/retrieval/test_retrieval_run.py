"""A whole run on prepared data: resumed, it is the unbroken one; its files are read by others."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from small_run import INDEX, SETTINGS, log, trained

from dlrm_jax.cli.predicting_model import find_model
from dlrm_jax.errors import UserError
from dlrm_jax.inference.loading import load_trained
from dlrm_jax.inference.runs import find_checkpoint
from dlrm_jax.mesh import make_mesh
from dlrm_jax.retrieval.model import MODEL
from dlrm_jax.retrieval.run import _MAY_CHANGE
from dlrm_jax.retrieval.settings import _ADDED, RetrievalSettings
from dlrm_jax.retrieval.task import Task
from dlrm_jax.retrieval.trained_towers import find_towers


def test_a_run_learns_and_goes_on_as_if_unbroken(task: Task, workdir: Path, tmp_path: Path):
    trained(task, tmp_path, 30)  # where the unbroken run validates, too
    outcome = trained(task, tmp_path, 60)
    assert outcome.summary["resumed_from"] == 30
    for name in ("items.npy", "users.parquet", "items.parquet"):
        assert (workdir / name).read_bytes() == (tmp_path / name).read_bytes()
    of_both = [(x / "metrics.jsonl").read_text().splitlines() for x in (workdir, tmp_path)]
    losses = [[x for x in map(json.loads, lines) if x["split"] == "train"] for lines in of_both]
    assert losses[0] == losses[1]
    assert [x["step"] for x in losses[0]] == list(range(1, 61))
    for split in ("validation", "test"):
        found = outcome.summary[split]
        assert found["model"]["recall@3"] > found["popularity"]["recall@3"] + 0.1
    assert outcome.summary["test"]["model"]["new_items"] > 0
    with pytest.raises(UserError, match="is of another run: its learning_rate is"):
        trained(task, tmp_path, 70, learning_rate=0.01)


def with_settings(workdir: Path, copy: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of a run whose checkpoints have other settings of retrieval."""
    shutil.copytree(workdir, copy)
    for path in copy.glob("checkpoints/*/metadata.json"):
        metadata = json.loads(path.read_text())
        change(metadata["identity"]["retrieval"])
        path.write_text(json.dumps(metadata))
    return copy


def test_a_run_from_before_a_setting_was_added_goes_on(task: Task, workdir: Path, tmp_path: Path):
    """And one without a step left has the speed of its training still."""
    copy = with_settings(workdir, tmp_path / "a", lambda x: x.pop("table_learning_rate"))
    before, found = json.loads((copy / "summary.json").read_text()), trained(task, copy, 60).summary
    assert found["resumed_from"] == 60
    assert found["examples_per_second"] == before["examples_per_second"] > 0


def test_every_setting_was_there_at_first_or_was_added_since():
    """A field without its former value in ``_ADDED`` would orphan the checkpoints that lack it."""
    first = {"user_columns", "item_columns", "item_id", "tower", "temperature", "negatives"}
    first |= {"sampler", *_MAY_CHANGE}
    known = {each.name for each in dataclasses.fields(RetrievalSettings)}
    assert first | _ADDED.keys() == known
    assert not first & _ADDED.keys()


def test_another_setting_is_named(task: Task, workdir: Path, tmp_path: Path):
    other = dataclasses.replace(task, settings=dataclasses.replace(SETTINGS, negatives=8))
    with pytest.raises(UserError, match=r"another run: its negatives is 16, this run's is 8;"):
        trained(other, workdir, 60)
    copy = with_settings(workdir, tmp_path / "a", lambda x: x.update(popularity=1))
    with pytest.raises(UserError, match=r"by a later version .* setting popularity, which this"):
        trained(task, copy, 60)


@pytest.mark.parametrize("name", ["users.parquet", "items.npy", "summary.json"])
def test_a_file_of_a_user_stays(task: Task, tmp_path: Path, name: str):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name} exists, and the workdir has no checkpoints"):
        trained(task, tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_sample_of_validation_needs_validation(task: Task, tmp_path: Path):
    others = dataclasses.replace(task, questions={"test": task.questions["test"]})
    with pytest.raises(UserError, match="validation_examples: it needs examples for validation"):
        trained(others, tmp_path, 1, validation_examples=5)


def test_files_have_the_values_of_the_log(task: Task, workdir: Path):
    frame = log()
    items = pl.read_parquet(workdir / "items.parquet")
    assert items.columns == ["item", "shop", "vector", "rows", "positives"]
    assert items.schema["vector"] == pl.Array(pl.Float32, 4)
    train = frame.head(480).filter(pl.col("item").is_not_null())
    counts = {name: (len(x), x["clicked"].sum()) for (name,), x in train.group_by("item")}
    found = {x["item"]: (x["rows"], x["positives"]) for x in items.iter_rows(named=True)}
    assert found == counts
    assert all(f"s{int(x[1:]) % 4}" == y for x, y in items.select("item", "shop").iter_rows())
    vectors = items["vector"].to_numpy()
    np.testing.assert_array_equal(np.load(workdir / "items.npy"), vectors)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    users = pl.read_parquet(workdir / "users.parquet")
    assert users.columns == ["user", "vector"]
    assert sorted(users["user"]) == sorted(frame["user"].unique())


def test_it_is_no_click_model(workdir: Path):
    for model in (None, MODEL):
        with pytest.raises(UserError, match=r"one of two towers .*see items\.parquet and users"):
            load_trained(find_checkpoint(workdir), make_mesh("1x1"), 64, model)


@pytest.mark.parametrize("k", [100, 10])
def test_a_workdir_is_its_checkpoint_of_the_best_recall(workdir: Path, tmp_path: Path, k: int):
    """The first recall decides, whichever command reads the run, and whatever the latest has."""
    copy = shutil.copytree(workdir, tmp_path / "a")
    best, last = (copy / "checkpoints" / f"{step:08d}" for step in (30, 60))
    found = {100: {"recall@100": 0.9, "recall@10": 0.1}, 10: {"recall@10": 0.9, "recall@100": 0.1}}
    worse: dict[str, float] = dict.fromkeys(found[k], 0.5)
    unvalidated = shutil.copytree(last, last.with_name("00000090"))
    for path, validation in ((best, found[k]), (last, worse), (unvalidated, None)):
        metadata = json.loads((path / "metadata.json").read_text())
        metadata |= {"step": int(path.name), "validation": validation}
        (path / "metadata.json").write_text(json.dumps(metadata))
    assert find_checkpoint(copy) == find_towers(copy) == find_model(copy, None).path == best
    shutil.rmtree(best)
    assert find_checkpoint(copy) == last
    shutil.rmtree(last)
    assert find_checkpoint(copy) == unvalidated


def test_users_are_near_to_items_of_their_parity(workdir: Path):
    users = pl.read_parquet(workdir / "users.parquet")
    items = pl.read_parquet(workdir / "items.parquet")
    scores = users["vector"].to_numpy() @ items["vector"].to_numpy().T
    parity = [[(int(u[1:]) + int(i[1:])) % 2 == 0 for i in items["item"]] for u in users["user"]]
    assert scores[np.array(parity)].mean() > scores[~np.array(parity)].mean() + 0.1


@pytest.mark.skipif(INDEX == "none", reason="usearch isn't installed")
def test_an_index_that_usearch_reads(workdir: Path):
    from usearch.index import Index

    index = Index.restore(workdir / "items.usearch")
    assert index is not None
    items = np.load(workdir / "items.npy")
    users = pl.read_parquet(workdir / "users.parquet")["vector"].to_numpy()
    found = index.search(users, 3)
    scores = users @ items.T
    near = np.sort(np.take_along_axis(scores, np.asarray(found.keys, np.int64), axis=1), axis=1)
    np.testing.assert_allclose(near, np.sort(scores, axis=1)[:, -3:], atol=1e-4)
