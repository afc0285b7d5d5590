"""A run that continues that of an earlier day, on a log with new values."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from day_logs import SCHEMA, write_day
from served import encode_logs

import dlrm_jax.run as run_module
from dlrm_jax import run_continued, run_training
from dlrm_jax.config import Config
from dlrm_jax.data.arrays import ABSENT, Dataset, Split
from dlrm_jax.data.directory import load_directory
from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.preprocessing.options import Options as Preparation
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.errors import UserError
from dlrm_jax.inference.vocabularies import read_values
from dlrm_jax.mesh import make_mesh
from dlrm_jax.run import Options, run
from dlrm_jax.run_continued import Continued, check_data, ids_before, start_from, verdict
from dlrm_jax.saved_config import file_fields, is_ours
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.config_data import for_data
from dlrm_jax.training.evaluation import evaluate
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.sampling import KEPT_NEGATIVES

CONFIG = Config(
    embedding_dim=4,
    bottom_mlp=(4,),
    top_mlp=(4, 1),
    optimizer="adam",
    batch_size=32,
    evaluation_batch_size=64,
    eval_every=0,
    checkpoint_every=2,
    keep_checkpoints=9,
    log_every=1,
    decay_start=2,
    decay_steps=100,
)


class Day(NamedTuple):
    """A prepared day with the learner of its tables."""

    config: Config
    data: Dataset
    learner: Learner

    def train(self, workdir: Path, source: Path | None = None, **changes: int) -> dict:
        config = dataclasses.replace(self.config, **changes)
        options = Options(workdir, continue_from=source)
        return run(config, self.data, self.learner, options).summary


def day_of(directory: Path, mesh: str) -> Day:
    data = load_directory(directory)
    config = for_data(CONFIG, data)
    return Day(config, data, make_learner(config, make_mesh(mesh)))


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Day, Day]:
    """Where all is, the first day with its run in ``first``, and the second on another mesh."""
    directory = tmp_path_factory.mktemp("days")
    logs = [write_day(directory, day) for day in range(3)]
    options = Preparation(SCHEMA)
    preprocess(logs[:1], directory / "data0", options, logs[1:2])
    preprocess(logs[1:2], directory / "data1", options, logs[2:], directory / "data0")
    first, second = day_of(directory / "data0", "1x1"), day_of(directory / "data1", "1x2")
    first.train(directory / "first", epochs=1)
    return directory, first, second


@pytest.fixture(autouse=True, scope="module")
def _compile_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "make_predict", functools.cache(run_module.make_predict))
        step = functools.cache(run_training.make_train_step)
        patch.setattr(run_training, "make_train_step", step)
        yield


def rows_by_value(directory: Path, learner: Learner, state: TrainState) -> dict[tuple, np.ndarray]:
    """Each row and its optimizer state, by table, array and the raw value that it stands for."""
    columns = Metadata.read(directory).columns
    found = {}
    for table, arrays in learner.collection.to_arrays(state.embedding):
        values = read_values(directory, columns.index(table.name))
        for key, array in arrays.items():
            rows = np.asarray(array)
            for value, meaning, row in values.rows():
                found[table.name, key, value or meaning] = rows[row]
    return found


def test_known_values_keep_rows_and_state(days: tuple[Path, Day, Day]):
    directory, first, second = days
    source = directory / "first"
    before, _ = start_from(source, first.learner, 0, directory / "data0")
    old = rows_by_value(directory / "data0", first.learner, before)
    state, continued = start_from(source, second.learner, 0, directory / "data1")
    new = rows_by_value(directory / "data1", second.learner, state)
    assert continued.step == int(state.step) == 4
    assert old.keys() < new.keys()
    assert {name for name, key, _ in new if key == "variance"} == {"user", "item"}
    for key, row in old.items():
        np.testing.assert_array_equal(new[key], row, err_msg=str(key))
    fresh = rows_by_value(directory / "data1", second.learner, second.learner.init(0))
    for key in new.keys() - old.keys():
        np.testing.assert_array_equal(new[key], fresh[key], err_msg=str(key))
    assert ("item", "table", "i5") in new.keys() - old.keys()
    assert int(state.optimizer[0].count) == 4, "of Adam's moments"


def as_served(first: Day, directory: Path, test: Split) -> dict[str, float | int]:
    """The metrics that `predict` gives of the first day's model, which has its own vocabularies."""
    (rows,) = encode_logs([directory / "day_2.parquet"], directory / "data0")
    own = dataclasses.replace(test.take(np.arange(len(test))), ids=rows.ids, dense=rows.dense)
    state, _ = start_from(directory / "first", first.learner, 0, directory / "data0")
    return evaluate(first.learner, run_module.make_predict(first.learner), state, Split((own,)), 64)


@pytest.mark.thorough
def test_the_model_before_is_corrected_as_its_own_training_says(
    days: tuple[Path, Day, Day], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run_continued, "noted_shift", lambda config, metadata: 9.0)
    directory, _, day = days
    found = day.train(tmp_path / "run", directory / "first", steps=1)
    assert found["before"]["test"]["calibration"] > 1.7
    assert 0.5 < found["test"]["calibration"] < 1.5


def test_steps_count_on_and_a_resumed_run_has_the_same_bits(
    days: tuple[Path, Day, Day], tmp_path: Path
):
    directory, first, day = days
    source = directory / "first"
    whole = day.train(tmp_path / "whole", source, steps=4)
    assert (whole["steps"], whole["resumed_from"]) == (8, None)
    assert whole["before"].keys() == {"test"}, "there is none for validation"
    assert whole["before"]["test"] == pytest.approx(as_served(first, directory, day.data.test))
    assert whole["before"]["test"] != whole["test"]
    day.train(tmp_path / "halves", source, steps=2)
    halves = day.train(tmp_path / "halves", source, steps=4)
    assert halves["resumed_from"] == 6
    for name in ("test", "before", "continued_from"):
        assert halves[name] == whole[name]
    for workdir in ("whole", "halves"):
        noted = read_metadata(tmp_path / workdir / "checkpoints" / "00000008")["continue_from"]
        assert noted["source"] == str(source)
    sums = [
        read_metadata(tmp_path / workdir / "checkpoints" / "00000008")["checksums"]
        for workdir in ("whole", "halves")
    ]
    assert sums[0] == sums[1]
    with pytest.raises(UserError, match=r"would resume continues .*first, got .*whole; .* leave"):
        day.train(tmp_path / "halves", tmp_path / "whole")
    with pytest.raises(UserError, match=r"would resume continues none, got"):
        days[1].train(source, tmp_path / "whole")


def test_data_that_do_not_continue_are_refused(days: tuple[Path, Day, Day], tmp_path: Path):
    directory = days[0]
    checkpoint = directory / "first" / "checkpoints" / "00000004"
    metadata = read_metadata(checkpoint)
    kept = directory / "first" / "preprocessing"
    with pytest.raises(UserError, match=f"data have no vocabularies; .* --grow={kept}$"):
        check_data(None, checkpoint, metadata)
    with pytest.raises(UserError, match=f"has no metadata.json; .* --grow={kept}$"):
        check_data(tmp_path, checkpoint, metadata)
    log, options = directory / "day_1.parquet", Preparation(SCHEMA, split="none")
    preprocess([log], tmp_path / "other", options)
    with pytest.raises(UserError, match=f"the ids of .*other aren't those of .* --grow={kept}$"):
        check_data(tmp_path / "other", checkpoint, metadata)
    none = Preparation(dataclasses.replace(SCHEMA, dense=()), split="none")
    preprocess([log], tmp_path / "none", none, grow=kept)
    with pytest.raises(
        UserError, match=r'schema of .*none has dense \[\], and that of .* \["age"\]:'
    ):
        check_data(tmp_path / "none", checkpoint, metadata)


def test_bags_that_are_longer_now_are_read_as_the_earlier_model_would(
    days: tuple[Path, Day, Day],
):
    """Its rows are those of its columns, and it reads as many ids of a bag as it has trained on."""
    directory, first, _ = days
    users, items, _ = first.config.table_rows
    checkpoint = str(directory / "first" / "checkpoints" / "00000004")
    as_ids = ids_before(Continued(checkpoint, checkpoint, 4, 0), (1, 1, 3))
    assert users > items, "so that a wrong limit would be noticed"
    ids = np.array([[items, 2, 3, 4, 5], [users, items, items, items, ABSENT]], np.int32)
    expected = [[items, 2, 3, ABSENT, ABSENT], [0, 0, 0, ABSENT, ABSENT]]
    assert as_ids(ids).tolist() == expected
    as_ids = ids_before(Continued(checkpoint, checkpoint, 4, 0), (2, 1, 1))
    assert as_ids(ids[:, [0, 1, 2, 3]]).tolist() == [[items, ABSENT, 3, 4], [0, ABSENT, 0, 0]]


def test_labels_and_negatives_that_mean_something_else_are_refused(
    days: tuple[Path, Day, Day], tmp_path: Path
):
    checkpoint = days[0] / "first" / "checkpoints" / "00000004"
    metadata = read_metadata(checkpoint)

    def prepared(name: str, **changes: Any) -> Path:
        """The second day, as other options describe it."""
        described = json.loads((days[0] / "data1" / "metadata.json").read_text())
        options = described["made_from"]["options"]
        options |= changes | {"schema": options["schema"] | changes.pop("schema", {})}
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.json").write_text(json.dumps(described))
        return tmp_path / name

    check_data(prepared("same"), checkpoint, metadata)
    stars = prepared("stars", schema={"label_at_least": {"click": 5.0}})
    with pytest.raises(
        UserError, match=r'stars has label_at_least {"click": 5.0}, and that of .* {}: it would'
    ):
        check_data(stars, checkpoint, metadata)
    fewer = prepared("fewer", drop_negatives=0.75)
    with pytest.raises(
        UserError,
        match=r"fewer has 0.25 of the negative .*00000004 was trained on 1: .*_negatives=0",
    ):
        check_data(fewer, checkpoint, metadata)
    check_data(fewer, checkpoint, metadata | {KEPT_NEGATIVES: 0.25})
    del metadata[KEPT_NEGATIVES]
    check_data(fewer, checkpoint, metadata)  # of an earlier version, which noted none


def test_a_run_leaves_its_config(days: tuple[Path, Day, Day]):
    directory, first, _ = days
    fields = file_fields(directory / "first" / "config.json")
    of_data = {"table_rows", "features", "bag_lengths", "dense_features"}
    assert not of_data & fields.keys()
    assert fields["shared_tables"] == (), "the data share them"
    again = dataclasses.replace(CONFIG, **fields)
    assert for_data(again, first.data) == first.config
    assert is_ours(directory / "first" / "config.json")
    for content in ('{"learning_rate": 0.1}', "3", "{"):
        (directory / "own.json").write_text(content)
        assert not is_ours(directory / "own.json"), "a user's file isn't replaced"


@pytest.mark.parametrize(
    ("after", "text"),
    [
        ((0.7, 0.3), "the update is better than none: auc 0.6"),
        ((0.5, 0.5), "the update is not better than none: "),
        ((0.7, 0.5), "the update is better than none by auc, and not by log loss: "),
        ((0.6, 0.4), "the update is not better than none: "),
    ],
)
def test_whether_an_update_is_better(after: tuple[float, float], text: str):
    found = verdict({"auc": 0.6, "log_loss": 0.4}, {"auc": after[0], "log_loss": after[1]})
    assert found.startswith(text)


@pytest.mark.parametrize("auc", [(math.nan, 0.6), (0.6, math.nan)])
def test_an_auc_that_is_not_a_number_says_nothing(auc: tuple[float, float]):
    before, after = {"auc": auc[0], "log_loss": 0.4}, {"auc": auc[1], "log_loss": 0.3}
    text = "the update is better than none: log loss 0.40000 -> 0.30000"
    assert verdict(before, after) == text
    assert verdict(after, before).startswith("the update is not better than none: log loss 0.3")
    none = {"auc": math.nan, "log_loss": math.nan}
    assert verdict(none, none) == "no metric tells whether the update is better than none"
