"""The main job from Python: in memory or with files, and what becomes of the model."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from saved_run import CONFIG, examples
from setups import with_one_wrong_copy

import dlrm_jax
from dlrm_jax import run_data, run_training
from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset, Examples, Split
from dlrm_jax.errors import CopiesDifferError, UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.job import FittedModel
from dlrm_jax.mesh import make_mesh
from dlrm_jax.run import Options, run
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.warm_start_checks import noted_start

PREPARED = Path(__file__).parent / "previous" / "data"


def small(**changes) -> Config:
    defaults = {"log_every": 1, "eval_every": 0, "checkpoint_every": 0, "epochs": 2}
    return dataclasses.replace(CONFIG, **(defaults | changes))


def data_set() -> Dataset:
    train, validation, test = (
        examples(count, seed=seed) for seed, count in enumerate((256, 90, 70))
    )
    return Dataset(
        train, validation, test, CONFIG.table_rows, CONFIG.bag_lengths, "drawn", "drawn examples"
    )  # fmt: skip


@pytest.fixture(scope="module")
def fitted() -> dlrm_jax.job.FittedModel:
    return dlrm_jax.fit(small(), data_set(), "1x2")


def test_in_memory(fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert fitted.summary["steps"] == 8
    for split in ("validation", "test"):
        assert fitted.evaluate(split) == fitted.summary[split]
    assert fitted.evaluate("train")["examples"] == 256
    assert fitted.evaluate("train")["log_loss"] < 0.68, "it learns whether the first id is even"
    assert list(tmp_path.iterdir()) == []


def test_training_on_everything(tmp_path: Path):
    """Metrics of splits without examples are left out, of files and of the model."""
    data = data_set()
    data = dataclasses.replace(data, validation=data.test[:0], test=data.test[:0])
    config = Config(model="logistic_regression", batch_size=64, evaluation_batch_size=64,
                    log_every=1, eval_every=2)  # fmt: skip
    model = dlrm_jax.fit(config, data, workdir=tmp_path)
    assert model.summary.keys() & data.splits.keys() == {"train"}
    assert model.summary["train"]["examples"] == 256
    assert repr(model) == "FittedModel(logistic_regression, mesh 1x1, 4 steps)"
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["split"] for line in lines} == {"train"}
    assert json.loads((tmp_path / "summary.json").read_text())["best_step"] is None
    again = dlrm_jax.fit(config, data, workdir=tmp_path)
    assert again.summary["resumed_from"] == 4
    model.save(tmp_path / "saved")


@pytest.mark.thorough
def test_copies_that_differ_end_a_fit_with_the_defaults(monkeypatch: pytest.MonkeyPatch):
    def broken_step(learner: Learner) -> Callable[..., tuple[TrainState, jax.Array]]:
        def step(state: TrainState, *_: object) -> tuple[TrainState, jax.Array]:
            wrong = {name: with_one_wrong_copy(x) for name, x in state.embedding.tables.items()}
            embedding = dataclasses.replace(state.embedding, tables=wrong)
            return dataclasses.replace(state, embedding=embedding), jnp.zeros(())

        return step

    monkeypatch.setattr(run_training, "make_train_step", broken_step)
    assert small().check_copies_every == Config().check_copies_every
    config = small(epochs=1)
    data = dataclasses.replace(data_set(), validation=examples(0), fingerprint="other")
    names = r"table\(s\) C1 and of table\(s\) C2, C3"
    with pytest.raises(CopiesDifferError, match=f"after step 4, the copies of {names} differ"):
        dlrm_jax.fit(config, data, "2x1")


def test_a_notebook_shows_it_in_one_line(fitted):
    auc = fitted.summary["test"]["auc"]
    assert repr(fitted) == f"FittedModel(dlrm, mesh 1x2, 8 steps, test AUC {auc:.5f})"
    assert repr(fitted.predictor) == "Predictor(dlrm of 3 tables, mesh 1x2, step 8)"
    shown = "Dataset(train 256, validation 90, test 70; 3 tables; drawn examples)"
    assert repr(fitted.data) == shown
    assert repr(fitted.data.test) == "Split(70 examples in 2 days)"
    assert " with 3 dense features and " in repr(fitted.data.test.days[0])


def test_predictions(fitted):
    found = fitted.predict("test")
    y = fitted.data.test.labels
    assert found.shape == (70,)
    log_loss = -np.mean(np.where(y == 1, np.log(found), np.log(1 - found)))
    assert log_loss == pytest.approx(fitted.evaluate()["log_loss"], rel=1e-6)
    for some in (fitted.data.test, fitted.data.test.days[0]):
        np.testing.assert_array_equal(fitted.predict(some), found[: len(some)])
    with pytest.raises(UserError, match=r"expected train, validation, test, .* got 'tset'"):
        fitted.predict("tset")


@pytest.mark.parametrize(
    ("array", "value", "message"),
    [
        ("labels", np.nan, "row 5 .* expected label 0 or 1, got nan"),
        ("labels", 2, "row 5 .* expected label 0 or 1, got 2"),
        ("sample_weights", -1, "row 5 .* expected a finite sample weight of 0 or more, got -1"),
    ],
)
def test_labels_and_weights_out_of_range(fitted, array: str, value: float, message: str):
    data = data_set()
    [day, *_] = data.validation.days
    values = np.ones(len(day), np.float32)
    values[5] = value
    bad = Split((dataclasses.replace(day, **{array: values}),))
    with pytest.raises(UserError, match=f"^validation, {message}"):
        dlrm_jax.fit(small(), dataclasses.replace(data, validation=bad), "1x2")
    with pytest.raises(UserError, match=f"^examples, {message}"):
        fitted.evaluate(bad)
    if array == "labels":
        assert len(fitted.predict(bad)) == len(day), "labels aren't read"


def test_a_model_of_squared_errors_takes_labels_between_0_and_1(fitted):
    [day, *_] = fitted.data.test.days
    soft = Split((dataclasses.replace(day, labels=np.float32(0.1) + np.float32(0.8) * day.labels),))
    config = dataclasses.replace(fitted.predictor.config, loss="mse")
    scorer = dataclasses.replace(fitted.predictor.scorer, config=config)
    predictor = dataclasses.replace(fitted.predictor, scorer=scorer)
    model = dataclasses.replace(fitted, predictor=predictor)
    assert model.evaluate(soft)["auc"] == fitted.evaluate(Split((day,)))["auc"]
    with pytest.raises(UserError, match=r"expected label 0 or 1, got 0\.[19]"):
        fitted.evaluate(soft)


@pytest.mark.parametrize("value", [-7, 3000])
def test_ids_out_of_range(fitted, value: int):
    [day, *_] = data_set().test.days
    ids = np.array(day.ids)
    ids[4, 2] = value
    day = dataclasses.replace(day, ids=ids)
    message = rf"^examples, row 4 .* feature C2: .* from 0 to 2999, .* got {value}\."
    for use in (fitted.predict, fitted.evaluate, fitted.predictor.probabilities):
        with pytest.raises(UserError, match=message):
            list(use(Split((day,))))


def test_what_is_saved_predicts_and_goes_on(fitted, tmp_path: Path):
    checkpoint = fitted.save(tmp_path)
    loaded = Predictor.load(str(checkpoint), "1x1", 64)
    found = np.concatenate(list(loaded.probabilities(fitted.data.test)))
    np.testing.assert_allclose(found, fitted.predict("test"), rtol=1e-5)
    with pytest.raises(UserError, match="has checkpoints already"):
        fitted.save(tmp_path)
    longer = dlrm_jax.fit(small(epochs=3), data_set(), make_mesh("1x2"), workdir=tmp_path)
    assert longer.summary["resumed_from"] == 8
    unbroken = dlrm_jax.fit(small(epochs=3), data_set(), "1x2")
    assert longer.summary["test_of_last"] == unbroken.summary["test_of_last"]
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 12
    losses = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in losses if x["split"] == "train"] == [9, 10, 11, 12]


def test_a_run_is_new_until_its_first_checkpoint(tmp_path: Path):
    for left, new in ((".00000010.dlrm_jax", True), ("00000010", False)):
        assert run_data.is_new(tmp_path)
        (tmp_path / "checkpoints" / left).mkdir(parents=True)
        assert run_data.is_new(tmp_path) == new


@pytest.mark.thorough
def test_a_run_with_no_step_left_keeps_its_speed(tmp_path: Path):
    """As after a kill in the final evaluation, or before earlier checkpoints were deleted."""
    config = small(checkpoint_every=4)
    first = dlrm_jax.fit(config, data_set(), "1x2", workdir=tmp_path)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    config = small(keep_checkpoints=1)
    again = dlrm_jax.fit(config, data_set(), "1x2", workdir=tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["00000008"]
    assert again.summary["resumed_from"] == first.summary["steps"]
    speed = first.summary["examples_per_second"]
    assert again.summary["examples_per_second"] == speed > 0
    config, said = small(steps=5, epochs=1), []
    learner = again.predictor.learner
    run(config, again.data, learner, Options(tmp_path), said.append)
    assert said[1:] == ["the run has 8 steps of 5 already, and isn't trained further"]
    # A single step more has no speed of its own, and its checkpoint notes the one before.
    for _ in range(2):
        outcome = run(small(steps=9), again.data, learner, Options(tmp_path), said.append)
        assert outcome.summary["examples_per_second"] == speed


def test_a_warm_start_is_noted_and_not_ignored_on_resumption(tmp_path: Path):
    source, others = tmp_path / "arrays", tmp_path / "others"
    for directory in (source, others):
        directory.mkdir()
        np.save(directory / "C1.npy", np.full((7, 8), 2.0, np.float32))
    data, learner = data_set(), make_learner(small(), make_mesh("1x1"))

    def train(workdir: str, epochs: int, warm: Path | None = None, *names: str) -> dict | None:
        options = Options(tmp_path / workdir, warm_start=warm, warm_start_names=names)
        run(small(epochs=epochs), data, learner, options)
        [*_, latest] = sorted((tmp_path / workdir / "checkpoints").iterdir())
        return read_metadata(latest)["warm_start"]

    noted = {"source": str(source), "names": ["C1"]}
    assert train("warm", 1, source, "C1") == noted
    assert train("warm", 2) == noted, "of the run, whoever goes on with it"
    before = {"warm_start": noted}
    assert noted_start(source, ["C1"], before) == noted
    started = rf"was started from C1 of {re.escape(str(source))}, .* leave out --warm_start"
    with pytest.raises(UserError, match=started):
        train("warm", 4, others, "C1")
    with pytest.raises(UserError, match=started):
        noted_start(source, ["C1", "bottom"], before)


def test_prepared_data_with_vocabularies(tmp_path: Path):
    config = small(table_optimizers=(), placements=(), batch_size=16, epochs=1)
    model = dlrm_jax.fit(config, PREPARED)
    assert model.predictor.config.table_rows == (42, 6, 14)
    model.save(tmp_path)
    kept = {path.name for path in (tmp_path / "preprocessing" / "vocabularies").iterdir()}
    assert kept == {"0.parquet", "1.parquet", "2.parquet"}


def test_generated_data():
    model = dlrm_jax.fit(small(examples=800, epochs=1))
    assert model.summary["steps"] == 640 // 64
    assert model.summary["teacher_auc"] > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mesh": "2x5"}, "needs 10 devices, but there are 8 of cpu; .*--emulate"),
        ({"mesh": "2x5", "emulate": True}, r"emulate_devices\(10\) comes too late"),
        ({"mesh": make_mesh("1x1"), "emulate": True}, "a mesh has its devices already"),
        ({"mesh": jax.make_mesh((2,), ("x",))}, "expected the axes data and model, got x"),
        ({"mesh": "2x2x1"}, "^mesh: expected DxM, .* got '2x2x1'"),
        ({"mesh": (1, 1)}, r"^mesh: expected a jax.sharding.Mesh .* got \(1, 1\)"),
        ({"mesh": None}, "^mesh: expected a jax.sharding.Mesh .* got None"),
        ({"mesh": "1x3"}, "batch_size: 64 samples can't be split"),
        ({"data": "/no/such/file"}, "/no/such/file"),
        ({"data": (1, 2)}, "^data: expected a Dataset, .* got a tuple"),
        ({"data": {}}, "^data: expected a Dataset, .* got a dict"),
        ({"workdir": ""}, "^workdir: expected a path, got an empty one"),
        ({"workdir": 3}, "^workdir: expected a path, got 3"),
        ({"config": "small"}, r"^config: expected a dlrm_jax.config.Config, .* got 'small'"),
        ({"config": {"steps": 1}}, r"^config: expected .* got {'steps': 1}"),
        ({"config": small(min_count=5)}, "^min_count: it has no effect without a raw file, got 5"),
        ({"config": small(min_count=5, table_optimizers=()), "data": PREPARED},
         "^min_count: it has no effect"),
        ({"data": PREPARED},
         "^table_optimizers: .* names no table; there are page, city, word; C1 is called page now"),
        ({"config": small(decay_start=5)}, "^decay_start: .* without --decay_steps, got 5"),
        ({"config": small(compression="mixed_dimensions", compress_above=10**6)},
         "^compression: mixed_dimensions compresses no table, since the largest has"),
        ({"config": small(frozen_tables=("C2", "C3"), table_optimizers=("C3=sgd",))},
         "^table_optimizers: C3 is one of frozen_tables"),
        ({"config": small(patience=2, eval_every=5)}, "^patience: it needs a workdir, .* got 2"),
        ({"config": small(target_auc=2.0)}, "^target_auc: expected at most 1, got 2.0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_does_not_fit(arguments: dict, message: str):
    arguments = {"config": small(), **arguments}
    with pytest.raises(UserError, match=message):
        inspect.unwrap(dlrm_jax.fit)(**arguments)  # users have no checks of types


def test_a_split_without_examples(fitted):
    none = fitted.data.test[:0]
    assert len(fitted.predict(none)) == 0
    with pytest.raises(UserError, match=r"^split: expected at least one example, got none"):
        fitted.evaluate(none)
    with pytest.raises(UserError, match=r"^train: expected at least one example, got none"):
        dlrm_jax.fit(small(), dataclasses.replace(data_set(), train=none))
    with pytest.raises(UserError, match=r"^target_auc: it needs examples for validation, and"):
        dlrm_jax.fit(small(target_auc=0.9), dataclasses.replace(data_set(), validation=none))
    with pytest.raises(UserError, match=r"^split: expected train, .* or examples, got \[1\]"):
        inspect.unwrap(type(fitted)._examples)(fitted, [1])


def test_the_package_alone_imports_nothing():
    check = "import sys, dlrm_jax; assert 'jax' not in sys.modules; dlrm_jax.nothing"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert "has no attribute 'nothing'" in result.stderr


def test_one_class_no_ids_and_a_checkpoint_that_is_never_due(tmp_path: Path):
    ids, labels = np.full((23, 1), -1, np.int32), np.zeros(23, np.float32)
    odd = Split((Examples(np.ones((23, 1), np.float32), ids, labels),))
    data = Dataset(odd, odd, odd, (5,), (1,), "odd", "odd examples")
    never = dict.fromkeys(("log_every", "eval_every", "checkpoint_every"), 10**9)
    config = Config(
        model="logistic_regression", batch_size=8, evaluation_batch_size=8, target_auc=0.7, **never
    )
    workdir = tmp_path / "a b, ü"
    model = dlrm_jax.fit(config, data, workdir=workdir)
    assert np.isfinite(model.summary["test"]["log_loss"])
    assert np.isnan(model.summary["test"]["auc"])
    written = json.loads((workdir / "summary.json").read_text())
    assert written["test"]["auc"] is None
    [checkpoint] = (workdir / "checkpoints").iterdir()
    assert int(checkpoint.name) == written["steps"] == 2
    small = tmp_path / "small"
    with pytest.raises(
        UserError, match=r"batch_size: expected at most the .* training examples, got 64"
    ):
        dlrm_jax.fit(dataclasses.replace(config, batch_size=64), data, workdir=small)
    assert not small.exists()


@pytest.mark.parametrize(
    ("given", "found"), [("", "an empty one"), (None, "None"), (3, "3"), (b"w", "b'w'")]
)
def test_what_is_no_path(given: Any, found: str):
    message = f"expected a path, got {found}"
    model = SimpleNamespace(predictor=SimpleNamespace(config=None, learner=None))
    with pytest.raises(UserError, match=f"^workdir: {message}"):
        inspect.unwrap(FittedModel.save)(model, given)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=f"^run_or_checkpoint: {message}"):
        inspect.unwrap(Predictor.load.__func__)(Predictor, given)
