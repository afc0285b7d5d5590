"""What earlier versions wrote still loads, and goes on to the numbers that they computed.

``previous/`` was made with the last version before format 3 of checkpoints, on mesh 1x2: a log of
210 lines, the data prepared from it, a run of six steps, and what that version then made of them:
six more steps, a warm start, probabilities and tables. ``previous/run_of_format_3`` is the same run
by the first version that noted the version of its config and the sizes of its files.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from main_job import arrays
from served import encode_logs

import dlrm_jax
from dlrm_jax import saved_config
from dlrm_jax.cli.continued import with_earlier_names
from dlrm_jax.config import FIELD_TYPES, Config
from dlrm_jax.data.arrays import Dataset, Split
from dlrm_jax.data.batches import TrainBatches
from dlrm_jax.data.dataset import load_dataset
from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.inference.table_files import write_table
from dlrm_jax.inference.vocabularies import read_values
from dlrm_jax.mesh import make_mesh
from dlrm_jax.run_continued import start_from
from dlrm_jax.run_start import checkpoints_of
from dlrm_jax.saved_config import trained_config
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.config_data import for_data
from dlrm_jax.training.kept_data import find_kept
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.saved_names import with_saved_names
from dlrm_jax.training.step import make_train_step
from dlrm_jax.training.warm_start import warm_start

PREVIOUS = Path(__file__).parent / "previous"
FORMAT_2 = PREVIOUS / "run" / "checkpoints" / "00000006"
FORMAT_3 = PREVIOUS / "run_of_format_3" / "checkpoints" / "00000006"
TABLES = ("C1", "C2", "C3")


@pytest.fixture(params=[FORMAT_2, FORMAT_3], ids=["format 2", "format 3"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(PREVIOUS / "expected.npz") as found:
        return dict(found)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(PREVIOUS / "data", tmp_path_factory.mktemp("cache"))


def assert_close(found: object, wanted: np.ndarray, name: str = "") -> None:
    """Other devices have another order of summation."""
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=1e-4, atol=1e-6, err_msg=name)


def config(checkpoint: Path = FORMAT_3) -> Config:
    return trained_config(checkpoint, read_metadata(checkpoint))


def trained(
    learner: Learner, state: TrainState, data: Dataset, config: Config, steps: range
) -> tuple[TrainState, list[float]]:
    batches = TrainBatches(data.train, config.batch_size, config.seed)
    step, losses = make_train_step(learner), []
    for i in steps:
        state, loss = step(state, learner.put(batches[i]))
        losses.append(float(loss))
    return state, losses


def test_data_load(data: Dataset):
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 140, "validation": 35, "test": 35
    }  # fmt: skip
    named = for_data(config(), data)
    assert named == dataclasses.replace(config(), features=("page", "city", "word"))
    # The run's tables keep their names; a new run has those of the log.
    assert with_saved_names(named, PREVIOUS / "run") == config()
    assert with_saved_names(named, None) == named
    placed = dataclasses.replace(named, placements=("city=row_wise",))
    with pytest.raises(UserError, match=r"placements: .* write C2 for city; or give another"):
        with_saved_names(placed, PREVIOUS / "run_of_format_3")
    raw = pl.read_csv(PREVIOUS / "raw.csv")
    np.testing.assert_array_equal(data.train.labels, raw["click"].to_numpy()[:140])


@pytest.mark.parametrize(
    ("checkpoint", "mesh"),
    [
        pytest.param(FORMAT_2, "1x1", marks=pytest.mark.thorough),
        (FORMAT_2, "2x4"),
        (FORMAT_3, "2x4"),
    ],
)
def test_a_run_goes_on(
    data: Dataset, expected: dict[str, np.ndarray], checkpoint: Path, mesh: str, tmp_path: Path
):
    described = config(checkpoint)
    identity = {"data": data.fingerprint, **described.identity()}
    learner = make_learner(described, make_mesh(mesh))
    state, step = Checkpoints(checkpoint.parent, identity).restore_latest(learner)
    assert step == 6
    state, losses = trained(learner, state, data, described, range(6, 12))
    assert_close(losses, expected["losses"])
    # What it writes is of this version, and has what that version would have written.
    Checkpoints(tmp_path / "checkpoints", identity).save(
        learner, state, {"config": dataclasses.asdict(described)}, None
    )
    assert read_metadata(tmp_path / "checkpoints" / "00000012")["format"] == 3
    found = {name.replace("/table", "/weights"): x for name, x in arrays(tmp_path, 12).items()}
    wanted = {
        name.removeprefix("step_12"): x
        for name, x in expected.items()
        if name.startswith("step_12")
    }
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert_close(found[name], array, name)


def test_a_run_is_continued(data: Dataset, tmp_path: Path):
    """By a new one, which calls its tables as that run did."""
    given = with_earlier_names(for_data(config(), data), config())
    assert given == config()
    learner = make_learner(given, make_mesh("2x4"))
    source = PREVIOUS / "run"
    state, continued = start_from(source, learner, 0, PREVIOUS / "data")
    assert continued.checkpoint == str(FORMAT_2)
    checkpoints_of(given, data, tmp_path).save(learner, state, {}, None)
    wanted, found = arrays(source, 6), arrays(tmp_path, 6)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name.replace("/weights", "/table")], array)


def test_a_run_goes_on_with_its_names(data: Dataset, tmp_path: Path):
    workdir = shutil.copytree(PREVIOUS / "run_of_format_3", tmp_path / "run")
    described = dataclasses.replace(config(), steps=6)
    model = dlrm_jax.fit(described, data, workdir=workdir)
    assert model.summary["resumed_from"] == 6
    assert model.predictor.config.table_names == TABLES


def test_data_that_have_another_fingerprint_now(data: Dataset, tmp_path: Path):
    """Arrays of other programs had one of times, which is kept beside that of their content."""
    shutil.copytree(PREVIOUS / "run", tmp_path / "run")
    learner = make_learner(config(), make_mesh("1x1"))
    now = dataclasses.replace(data, fingerprint="now")
    with pytest.raises(ValueError, match=r"trained on other data .*\. --continue_from"):
        checkpoints_of(config(), now, tmp_path / "run").restore(learner, 6)
    known = dataclasses.replace(now, earlier_fingerprints=(data.fingerprint,))
    assert checkpoints_of(config(), known, tmp_path / "run").restore(learner, 6)


def test_a_checkpoint_of_other_settings_is_refused(data: Dataset):
    described = dataclasses.replace(config(), seed=1)
    identity = {"data": data.fingerprint, **described.identity()}
    with pytest.raises(ValueError, match="its seed is 0, this run's is 1"):
        Checkpoints(FORMAT_2.parent, identity).restore(make_learner(described, make_mesh("1x1")), 6)


def test_a_warm_start_takes_it(data: Dataset, expected: dict[str, np.ndarray], checkpoint: Path):
    described = dataclasses.replace(config(checkpoint), seed=3)
    learner = make_learner(described, make_mesh("1x2"))
    state = warm_start(learner, 3, checkpoint, ["C1", "C2", "bottom"], [data.fingerprint])
    _, losses = trained(learner, state, data, described, range(2))
    assert_close(losses, expected["warm_losses"])


def test_predictions(
    data: Dataset, expected: dict[str, np.ndarray], checkpoint: Path, tmp_path: Path
):
    model = Predictor.load(checkpoint, make_mesh("1x2"), 70)
    vocabularies = find_kept(checkpoint)
    assert vocabularies
    raw = encode_logs([PREVIOUS / "raw.csv"], vocabularies)
    in_time = Split((*data.train.days, *data.test.days, *data.validation.days))
    for split in (Split(tuple(raw)), in_time):
        found = np.concatenate(list(model.probabilities(split)))
        np.testing.assert_allclose(found, expected["probabilities"], rtol=1e-5)


def test_tables_as_files(expected: dict[str, np.ndarray], checkpoint: Path, tmp_path: Path):
    metadata, vocabularies = read_metadata(checkpoint), find_kept(checkpoint)
    assert vocabularies
    for number, table in enumerate(TABLES):
        values = read_values(vocabularies, number)
        write_table(checkpoint, metadata, table, values, tmp_path, "npy")
        found = np.load(tmp_path / f"{table}.npy")
        np.testing.assert_array_equal(found, expected[f"table/{table}"])


def test_every_field_of_the_config_is_saved_or_was_added_since():
    """A field without its former value in ``_ADDED`` would orphan this checkpoint."""
    saved = read_metadata(FORMAT_3)["config"].keys()
    assert saved | saved_config._ADDED.keys() == FIELD_TYPES.keys()
    assert not saved & saved_config._ADDED.keys()


def test_a_field_that_is_newer_means_what_was_done_before(monkeypatch: pytest.MonkeyPatch):
    """Also if its default has changed since it was added."""
    metadata = read_metadata(FORMAT_3)
    del metadata["config"]["table_dtype"], metadata["identity"]["table_dtype"]
    with pytest.raises(UserError, match="doesn't describe table_dtype"):
        trained_config(FORMAT_3, metadata)
    monkeypatch.setitem(saved_config._ADDED, "table_dtype", "bfloat16")
    assert trained_config(FORMAT_3, metadata).table_dtype == "bfloat16"
    assert saved_config.saved_fields(metadata["identity"])["table_dtype"] == "bfloat16"


def test_a_config_of_a_later_version_is_refused():
    metadata = read_metadata(FORMAT_3)
    for later in (
        {"config_version": saved_config.VERSION + 1},
        {"config": metadata["config"] | {"new": 1}},
    ):
        with pytest.raises(UserError, match=r"written by a later version .*, which this one lacks"):
            trained_config(FORMAT_3, metadata | later)
