"""Runs with dynamic ids: stopped and resumed, predicted, exported; a vocabulary afterwards."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from main_job import arrays
from saved_run import CONFIG, examples

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset
from dlrm_jax.dynamic_ids.policy import DynamicIds
from dlrm_jax.errors import UserError
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.inference.table_files import write_table
from dlrm_jax.mesh import make_mesh
from dlrm_jax.run import Options, Outcome, run
from dlrm_jax.serving.export import export
from dlrm_jax.serving.trained_model import TrainedModel
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.dynamic_tables import dynamic_rows
from dlrm_jax.training.evaluation import predictions
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.step import make_predict
from dlrm_jax.training.tables import describe

DATA = Dataset(
    examples(512),
    examples(64, seed=1),
    examples(64, seed=2),
    CONFIG.table_rows,
    CONFIG.bag_lengths,
    "drawn",
    "drawn examples",
)
DYNAMIC = dataclasses.replace(
    CONFIG,
    dynamic_ids=("C2=250:evict_share=0.1:defaults=2:parts=3",),
    learning_rate=1,
    log_every=1,
    eval_every=2,
    checkpoint_every=3,
    keep_checkpoints=9,
    steps=7,
)
LEARNER = make_learner(DYNAMIC, make_mesh("2x2"))


def run_in(workdir: Path, config: Config = DYNAMIC, learner=LEARNER) -> Outcome:
    return run(config, DATA, learner, Options(workdir), lambda line: None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    workdir = tmp_path_factory.mktemp("dynamic") / "run"
    return workdir, run_in(workdir)


def test_stopped_and_resumed_its_files_are_the_same(trained, tmp_path):
    workdir, _ = trained
    expected = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
    for name, pipelined in (("resumed", False), ("pipelined", True)):
        resumed = tmp_path / name
        shutil.copytree(workdir, resumed)
        shutil.rmtree(resumed / "checkpoints" / "00000007")
        run_in(resumed, dataclasses.replace(DYNAMIC, pipelined=pipelined))
        assert (resumed / "metrics.jsonl").read_text(encoding="utf-8") == expected
        found = arrays(resumed, 7)
        for key, array in arrays(workdir, 7).items():
            np.testing.assert_array_equal(found[key], array, err_msg=key)


def test_predictions_of_run_checkpoint_and_artifact_are_the_same(trained, tmp_path):
    workdir, outcome = trained
    assert outcome.id_maps
    assert outcome.id_maps.maps["C2"].live <= 248
    rows = DATA.validation
    own = predictions(LEARNER, make_predict(LEARNER), outcome.state, rows, 64, outcome.id_maps.find)
    logits = np.concatenate(list(own))
    expected = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(Predictor.load(workdir).predict(rows), expected, rtol=1e-5)
    artifact = tmp_path / "artifact"
    export(TrainedModel.read(workdir), artifact, "small", "float32")
    np.testing.assert_allclose(Predictor.load(artifact).predict(rows), expected, rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize(("rows", "lost"), [(400, 0), (200, 50)])
def test_resumed_with_other_rows(trained, tmp_path, rows: int, lost: int):
    workdir, outcome = trained
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    config = dataclasses.replace(DYNAMIC, dynamic_ids=(f"C2={rows}:evict_share=0.1:defaults=2",))
    learner, said = make_learner(config, make_mesh("2x2")), []
    resumed = run(config, DATA, learner, Options(copy), said.append)
    line = f"ids of table C2: {rows} rows in one part, 250 in 3 parts in checkpoint 00000007; "
    assert f"{line}{lost} of 248 ids lose their rows" in said
    # Nothing was trained. Metrics are those of what ids have now, not those that were noted.
    same = resumed.summary["validation"] == outcome.summary["validation"]
    assert same == (lost == 0)
    longer = dataclasses.replace(config, steps=9)
    run(longer, DATA, learner, Options(copy), lambda line: None)
    assert arrays(copy, 9)["/C2/table"].shape == (rows, 8)
    back = dataclasses.replace(DYNAMIC, steps=10)
    again = run(back, DATA, LEARNER, Options(copy), lambda line: None)
    assert again.summary["resumed_from"] == 9
    assert arrays(copy, 10)["/C2/table"].shape == (250, 8)


def test_what_is_not_for_dynamic_ids_says_so(trained, tmp_path):
    workdir, _ = trained
    static = dataclasses.replace(DYNAMIC, dynamic_ids=())
    learner = make_learner(static, make_mesh("2x2"))
    for start in ({"continue_from": workdir}, {"warm_start": workdir}):
        with pytest.raises(UserError, match="ids of C2 are dynamic there"):
            run(static, DATA, learner, Options(None, **start), lambda line: None)
        with pytest.raises(UserError, match="expected a run without dynamic ids"):
            run(DYNAMIC, DATA, LEARNER, Options(tmp_path / "new", **start), lambda line: None)
        assert not (tmp_path / "new").exists()
    other = dataclasses.replace(DYNAMIC, dynamic_ids=("C2=250:evict=lfu",))
    with pytest.raises(UserError, match=r"its dynamic_ids is .*C2=250:evict_share=0.1:def"):
        run_in(workdir, other, make_learner(other, make_mesh("2x2")))
    checkpoint = workdir / "checkpoints" / "00000007"
    with pytest.raises(UserError, match=r"table C2 of .* they are dynamic there"):
        write_table(checkpoint, read_metadata(checkpoint), "C2", None, tmp_path, "npy")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("C2=many", "expected an integer for the rows of C2, got 'many'"),
        ("C2=9:evict=mru", "dynamic_ids: C2: evict: expected one of lru"),
        ("C2=9:admit=2", "expected rules of C2 among admit_count, .* got 'admit=2'"),
        ("C2=9:defaults=9", "dynamic_ids: C2: rows of a table .* from 10 to"),
        ("C9=9", "dynamic_ids: .*C9"),
        ("C2=99:evict_share=1/0", "expected a number, such as 0.1 or 1/32, for the evict_share"),
    ],
)
def test_settings(setting, message):
    with pytest.raises(UserError, match=message):
        describe(dataclasses.replace(CONFIG, dynamic_ids=(setting,)))


def test_a_share_may_be_a_fraction():
    config = dataclasses.replace(CONFIG, dynamic_ids=("C2=99:evict_share=1/32",))
    assert dynamic_rows(config)["C2"].ids == DynamicIds(evict_share=1 / 32)


def test_compressed_tables_are_refused():
    config = dataclasses.replace(
        CONFIG, dynamic_ids=("C2=250",), placements=(), compression="quotient_remainder"
    )
    with pytest.raises(UserError, match="C2 is compressed to quotient_remainder"):
        describe(config)
