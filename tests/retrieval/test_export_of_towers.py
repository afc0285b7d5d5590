"""A run of two towers as an artifact: users in, items out, as the run's vectors say."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from in_process import run_command
from small_run import log

from dlrm_jax.artifact.files import note_files
from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.cli.predicting_model import find_model
from dlrm_jax.conversion.own_model import OwnModel
from dlrm_jax.data.arrays import Examples, Split
from dlrm_jax.errors import DamagedArtifactError, UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.retrieval import golden_queries
from dlrm_jax.retrieval.export import export
from dlrm_jax.retrieval.retriever import Retriever
from dlrm_jax.retrieval.task import Task
from dlrm_jax.retrieval.trained_towers import TrainedTowers, find_towers
from dlrm_jax.serving.server import Options, Server


@pytest.fixture(scope="module")
def towers(task: Task, workdir: Path) -> TrainedTowers:
    checkpoint = find_towers(workdir)
    assert checkpoint is not None
    return TrainedTowers.read(checkpoint, task.data)


@pytest.fixture(scope="module")
def directory(towers: TrainedTowers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported") / "items"
    export(towers, directory, "items", kind="ivf", cells=3, probes=2)
    return directory


@pytest.fixture
def copy(directory: Path, tmp_path: Path) -> Path:
    return shutil.copytree(directory, tmp_path / "copy")


def rewritten(directory: Path) -> None:
    """Gives an artifact the checksums of its files, as if they were written so."""
    manifest = Manifest.read(directory)
    dataclasses.replace(manifest, files=note_files(directory)).write(directory)


def test_rows_of_users_find_the_items_of_the_run(directory: Path, workdir: Path):
    retriever = Retriever.load(directory)
    assert "artifact items of 2 tables in float32, 9 items in 3 cells" in repr(retriever)
    rows = log().select("user", "viewed").tail(40)
    found = retriever.search(rows, 9, probes=3)
    users = dict(pl.read_parquet(workdir / "users.parquet").iter_rows())
    last = log().with_row_index().group_by("user").agg(pl.col("index").max())["index"]
    at = np.flatnonzero(np.isin(np.arange(560, 600), last.to_numpy()))
    mine = retriever.vectors(rows)[at]
    wanted = np.array([users[name] for name in rows["user"].to_numpy()[at]])
    np.testing.assert_allclose(mine, wanted, atol=1e-5)
    items = np.load(workdir / "items.npy")
    scores = np.take_along_axis(retriever.vectors(rows) @ items.T, found.items, axis=1)
    np.testing.assert_allclose(found.scores, scores, atol=0.02)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    values = pl.read_parquet(workdir / "items.parquet").drop("vector")
    assert retriever.items.equals(values)
    again = retriever.search(rows.to_dicts(), 9, probes=3)
    np.testing.assert_array_equal(again.items, found.items)
    assert retriever.search(rows.head(0)).items.shape == (0, 10)


def test_filters_are_the_values_of_the_log(directory: Path):
    retriever = Retriever.load(directory)
    user = [{"user": "u3", "viewed": ["i1", "never seen"]}, {"user": None, "viewed": []}]
    found = retriever.search(user, 9, {"shop": ["s1", "s3"]}, probes=3).items
    shops = retriever.items["shop"].to_list()
    for row in found:
        assert {shops[x] for x in row if x >= 0} == {"s1", "s3"}
        assert sum(row >= 0) == sum(x in ("s1", "s3") for x in shops)
    none = retriever.search(user, 2, {"shop": "s9"})
    assert (none.items == -1).all()
    assert (none.scores == -np.inf).all()
    with pytest.raises(UserError, match="no attribute 'item'; they have shop"):
        retriever.search(user, 2, {"item": "i1"})
    with pytest.raises(UserError, match="'viewed'"):
        retriever.search([{"user": "u3"}], 2)
    # Rows of the data have the item's columns, too, and the user's needn't be the first.
    rows = Examples(np.zeros((1, 0), np.float32), np.zeros((1, 6), np.int32), np.zeros(1, "f4"))
    with pytest.raises(UserError, match=r"expected ids of shape \[1, 4\], .* user, viewed, got"):
        retriever.search(rows)


def test_recall_is_that_of_the_run_nearly(directory: Path, workdir: Path):
    manifest = Manifest.read(directory)
    summary = json.loads((workdir / "summary.json").read_text())
    for split in ("validation", "test"):
        assert manifest.metrics[split].keys() == {"trained", "exported"}
        assert manifest.metrics[split]["trained"]["recall@9"] == 1.0
        assert 0.5 < (manifest.metrics[split]["exported"]["recall@9"] or 0) <= 1.0
        assert summary[split]["model"]["recall@3"] < 1.0


def test_rows_without_weights_have_no_recall(towers: TrainedTowers, tmp_path: Path):
    task = towers.task
    rows = task.questions["test"].split.take(task.questions["test"].rows)
    weightless = dataclasses.replace(rows, sample_weights=np.zeros(len(rows), np.float32))
    asked = dataclasses.replace(
        task.questions["test"], split=Split((weightless,)), rows=np.arange(len(rows))
    )
    asking = dataclasses.replace(task, questions={"test": asked})
    export(dataclasses.replace(towers, task=asking), tmp_path / "items", "items")
    recalls = Manifest.read(tmp_path / "items").metrics["test"]
    assert recalls == {"trained": {"recall@9": None}, "exported": {"recall@9": None}}


def test_golden_queries(directory: Path, copy: Path):
    found = golden_queries.verify(directory)
    assert (found.queries, found.difference, found.others) == (30, 0.0, [])
    items = np.load(copy / "golden" / "items.npy")
    np.save(copy / "golden" / "items.npy", items[:, ::-1])
    rewritten(copy)
    with pytest.raises(DamagedArtifactError, match=r"golden/items\.npy.* gives other items"):
        golden_queries.verify(copy)
    np.save(copy / "golden" / "items.npy", items)
    np.save(copy / "golden" / "vectors.npy", items.astype(str))
    rewritten(copy)
    with pytest.raises(DamagedArtifactError, match=r"golden/vectors\.npy"):
        golden_queries.verify(copy)
    shutil.copy(directory / "golden" / "vectors.npy", copy / "golden")
    np.save(copy / "golden" / "vectors.npy", np.load(copy / "golden" / "vectors.npy") + 1e-4)
    rewritten(copy)
    with pytest.raises(DamagedArtifactError, match=r"vectors\.npy.*, they differ by 0\.0001"):
        golden_queries.verify(copy)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("dense", lambda x: x[:0], "expected golden queries, it has none"),
        (
            "ids",
            lambda x: x[:, 0],
            r"expected int32 of shape \[30, 4\], it has int32",
        ),
        ("vectors", lambda x: x.astype(str), r"expected float32 of shape \[30, 4\], it has <U"),
        ("items", lambda x: x[0], r"expected int64 of shape \[30, any\], it has .* shape \[10\]"),
        (
            "scores",
            lambda x: x.astype("f8"),
            r"expected float32 of shape \[30, 10\], it has float",
        ),
    ],
)
def test_golden_queries_of_another_kind(copy: Path, name: str, change, message: str):
    path = copy / "golden" / f"{name}.npy"
    np.save(path, change(np.load(path)))
    rewritten(copy)
    with pytest.raises(DamagedArtifactError, match=rf"golden/{name}\.npy: {message}"):
        golden_queries.verify(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda items: items.head(8), "expected a row for each of 9 items, it has 8"),
        (lambda items: items.drop("item"), "expected a column 'item', .* it has only shop, rows"),
    ],
)
def test_items_that_do_not_fit_the_index(copy: Path, change, message: str):
    """A row is found by the number of its item."""
    path = copy / "index" / "items.parquet"
    change(pl.read_parquet(path)).write_parquet(path)
    rewritten(copy)
    retriever = Retriever.load(copy)
    for read in (lambda: retriever.items, lambda: golden_queries.verify(copy)):
        with pytest.raises(DamagedArtifactError, match=rf"index/items\.parquet.*: {message}"):
            read()


def test_flipped_bits_are_found_in_any_file(copy: Path):
    chance = random.Random(0)
    for path in sorted(copy.rglob("*")):
        if path.is_dir():
            continue
        content = bytearray(path.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        whole, _ = path.read_bytes(), path.write_bytes(content)
        with pytest.raises(UserError, match=r"is damaged|a later version"):
            golden_queries.verify(copy)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("numbers", lambda x: np.where(x == 2, 900, x), "expected each of 9 items once"),
        ("numbers", lambda x: x[:-1], r"expected int32 of shape \[\d+\], it has"),
        ("starts", lambda x: x[::-1], "expected ascending numbers from 0 to"),
        # Their differences are positive again in 64 bits.
        ("starts", lambda x: np.array([0, 2**63 - 1, -2, x[-1]]), "expected ascending"),
        ("vectors", lambda x: x[..., :2], r"expected int8 of shape"),
        ("scales", lambda x: x.astype(np.float64), "expected float32 of"),
        ("scales", lambda x: np.where(x > 0, np.inf, x), "expected finite scales, it has inf at"),
        ("centroid_scales", lambda x: x * np.float32(np.nan), "expected finite scales, it has nan"),
        ("attributes", lambda x: x[1:], r"expected int32 of shape \[\d+, 1\]"),
        ("bloom", lambda x: x[:, 1:], "expected uint32 of"),
        ("centroids", lambda x: x[1:], "expected int8 of"),
    ],
)
def test_files_that_do_not_fit_are_refused(copy: Path, name: str, change, message: str):
    """Else the kernel would read memory that isn't theirs."""
    path = copy / "index" / f"{name}.npy"
    np.save(path, change(np.load(path)))
    rewritten(copy)
    with pytest.raises(DamagedArtifactError, match=rf"index/{name}\.npy.*{message}"):
        Retriever.load(copy)


def test_more_items_than_memory_holds(copy: Path):
    """The numbers of so many would take 16 GiB."""
    manifest = Manifest.read(copy)
    assert manifest.retrieval
    many = dataclasses.replace(manifest.retrieval, items=2**31 - 1)
    dataclasses.replace(manifest, retrieval=many).write(copy)
    with pytest.raises(DamagedArtifactError, match=r"expected each of 2,147,483,647 items once"):
        Retriever.load(copy)


def test_vocabularies_of_other_types(copy: Path):
    path = copy / "preprocessing" / "vocabularies" / "0.parquet"
    pl.read_parquet(path).with_columns(pl.col("id").cast(pl.Float64)).write_parquet(path)
    rewritten(copy)
    with pytest.raises(UserError, match="it has id of type Float64"):
        golden_queries.verify(copy)


@pytest.mark.parametrize("number", [None, -1])
def test_values_without_an_id_are_refused(copy: Path, number: int | None):
    path = copy / "index" / "values_shop.parquet"
    pl.read_parquet(path).with_columns(id=pl.lit(number, pl.Int32)).write_parquet(path)
    rewritten(copy)
    with pytest.raises(DamagedArtifactError, match=r"values_shop.*: expected ids from 0 on, it"):
        Retriever.load(copy)


def test_what_is_no_artifact_of_two_towers(directory: Path, artifact: Path, workdir: Path):
    for read in (
        Predictor.load,
        OwnModel.open,
        lambda path: find_model(path, None),
        lambda path: Server(path, Options("items")),
    ):
        with pytest.raises(UserError, match="of two towers, which find items; load it by"):
            read(directory)
    with pytest.raises(UserError, match="is one of a click model; load it by"):
        Retriever.load(artifact)
    assert find_towers(Path(__file__).parents[1] / "previous" / "run_of_format_3") is None


def test_data_of_another_run(towers: TrainedTowers, task: Task):
    data = dataclasses.replace(task.data, fingerprint="other", earlier_fingerprints=())
    with pytest.raises(UserError, match=r"data: .* was trained on other data than"):
        TrainedTowers.read(towers.model.checkpoint, data)


def test_the_commands(
    task: Task,
    workdir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    made, data = tmp_path / "made", task.data.directory
    given = [f"--run={workdir}", f"--output={made}", f"--data={data}", "--name=items"]
    for flags, message in (
        (
            given[:2],
            "--data is missing: the items of two towers and their columns are read from the rows",
        ),
        ([*given, "--cells=3"], "--cells has no effect without --index=ivf"),
        ([*given, "--index=ivf", "--cells=10"], "--cells: expected at most the 9 items, got 10"),
        ([*given, "--max_auc_loss=0.1"], "--max_auc_loss has no effect with two towers"),
    ):
        with pytest.raises(UserError, match=message):
            run_command(monkeypatch, "export", *flags)
    run_command(monkeypatch, "export", *given, "--tables=int8")
    printed = capsys.readouterr().out
    assert "9 items, 4 numbers in int8; filters by shop" in printed
    assert "test, exported" in printed
    run_command(monkeypatch, "verify", made)
    assert "vectors of 30 golden queries are equal to the last bit" in capsys.readouterr().out
    (made / "index" / "vectors.npy").write_bytes(b"")
    with pytest.raises(SystemExit, match="1"):
        run_command(monkeypatch, "verify", made)
    assert "index/vectors.npy: expected" in capsys.readouterr().err
