"""A model from a checkpoint predicts what the trained one does, and holds nothing else."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from saved_run import CONFIG, examples, train_and_save

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Examples, Split
from dlrm_jax.errors import UserError
from dlrm_jax.inference.loading import for_prediction
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.mesh import make_mesh
from dlrm_jax.saved_config import trained_config
from dlrm_jax.training.evaluation import limited, predictions
from dlrm_jax.training.step import make_predict

ROWS = 200  # three batches of 64, and one that isn't full


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A checkpoint, and the logits of the learner that wrote it."""
    learner, state, checkpoint = train_and_save(tmp_path_factory.mktemp("run"), "2x4")
    batches = predictions(learner, make_predict(learner), state, examples(ROWS, seed=1), 64)
    return checkpoint, np.concatenate(list(batches))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


@pytest.mark.parametrize(
    ("mesh", "batch_size"),
    [("2x4", 64), ("1x1", 50), pytest.param("1x8", 400, marks=pytest.mark.thorough)],
)
def test_probabilities_are_those_of_training(
    trained: tuple[Path, np.ndarray], mesh: str, batch_size: int
):
    checkpoint, logits = trained
    model = Predictor.load(checkpoint, make_mesh(mesh), batch_size)
    batches = list(model.probabilities(examples(ROWS, seed=1)))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    found = np.concatenate(batches)
    assert found.shape == (ROWS,)
    np.testing.assert_allclose(found, sigmoid(logits), rtol=1e-5)
    assert np.ptp(found) > 0.01, "nothing to compare"


def test_no_optimizer_state(trained: tuple[Path, np.ndarray]):
    model = Predictor.load(trained[0], make_mesh("2x4"), 64)
    assert model.config == CONFIG
    assert jax.tree.leaves((model.state.optimizer, model.state.embedding.slots)) == []
    assert {x.dtype for x in jax.tree.leaves(model.state.embedding)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(
            {"table_dtype": "bfloat16", "compute_dtype": "bfloat16"}, marks=pytest.mark.thorough
        ),
        {"interaction": "cat", "pooling": "mean", "frozen_tables": ("C2",), "optimizer": "adam"},
        pytest.param(
            {"accumulation_steps": 2, "dense_optimizer": "adamw"}, marks=pytest.mark.thorough
        ),
        pytest.param(
            {"table_rows": (7, 3000, 3000), "shared_tables": ("C3=C2",), "placements": ()},
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            {"compression": "quotient_remainder", "compress_above": 20}, marks=pytest.mark.thorough
        ),
    ],
    ids=lambda changes: "-".join(changes),
)
def test_models_of_other_configs(changes: dict, tmp_path: Path):
    config = dataclasses.replace(CONFIG, **changes)
    learner, state, checkpoint = train_and_save(tmp_path, "1x1", config)
    split = examples(ROWS, seed=1)
    expected = np.concatenate(list(predictions(learner, make_predict(learner), state, split, 64)))
    model = Predictor.load(checkpoint, make_mesh("1x1"), 64)
    np.testing.assert_allclose(
        np.concatenate(list(model.probabilities(split))), sigmoid(expected), rtol=1e-6
    )


def test_bad_rows_are_named(trained: tuple[Path, np.ndarray]):
    model = Predictor.load(trained[0], make_mesh("1x1"), 64)
    (first, second) = examples(ROWS).days
    dense = second.dense.copy()
    dense[100 - len(first), 1] = np.nan
    bad = Split((first, Examples(dense, second.arrays["ids"], second.labels)))
    with pytest.raises(UserError, match=r"row 100 .*isn't finite.* number 1 \(from 0\) is NaN"):
        list(model.probabilities(bad))
    other = examples(10, config=dataclasses.replace(CONFIG, dense_features=4))
    with pytest.raises(UserError, match="with 3 dense features, got examples with 4"):
        list(model.probabilities(other))


def refused(checkpoint: Path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Predictor.load(checkpoint, make_mesh("1x1"))


def test_what_is_no_checkpoint(trained: tuple[Path, np.ndarray], tmp_path: Path):
    checkpoint = trained[0]
    refused(tmp_path / "none", "none is not a checkpoint: there is no such directory")
    refused(tmp_path, "is not a checkpoint")
    for content in ("{", "[]", '{"made_from": {}}'):
        (tmp_path / "metadata.json").write_text(content)
        refused(tmp_path, "is not a checkpoint")
    refused(tmp_path, "is not a checkpoint: it is a directory of prepared data")
    with pytest.raises(UserError, match="batch_size: 100 samples can't be split"):
        Predictor.load(checkpoint, make_mesh("2x4"), 100)


def changed(checkpoint: Path, target: Path, **changes) -> Path:
    """A copy with other metadata."""
    copy = shutil.copytree(checkpoint, target)
    metadata = json.loads((copy / "metadata.json").read_text())
    (copy / "metadata.json").write_text(json.dumps(metadata | changes))
    return copy


def test_checkpoints_of_other_kinds(trained: tuple[Path, np.ndarray], tmp_path: Path):
    checkpoint = trained[0]
    refused(changed(checkpoint, tmp_path / "a", format=0), "has format 0, this program reads 2")
    refused(changed(checkpoint, tmp_path / "b", config=None), "doesn't describe its model")
    fields = dataclasses.asdict(CONFIG) | {"unheard_of": 1}
    refused(changed(checkpoint, tmp_path / "c", config=fields), "the fields unheard_of")
    wider = dataclasses.asdict(dataclasses.replace(CONFIG, top_mlp=(9, 1)))
    refused(
        changed(checkpoint, tmp_path / "d", config=wider),
        r"expected top\.layers\.0\.\w+ of shape .*9.*, it has",
    )


@pytest.mark.parametrize("part", ["dense", "tables"])
def test_a_part_is_missing(trained: tuple[Path, np.ndarray], tmp_path: Path, part: str):
    copy = shutil.copytree(trained[0], tmp_path / "copy")
    shutil.rmtree(copy / part)
    refused(copy, "is damaged: ")


def test_files_are_cut_short(trained: tuple[Path, np.ndarray], tmp_path: Path):
    copy = shutil.copytree(trained[0], tmp_path / "copy")
    for path in copy.rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(copy, "is damaged: ")


def test_every_field_comes_back():
    config = Config(frozen_tables=("C1",), class_weights=(0.5, 2.0), eps=1e-9)
    fields = json.loads(json.dumps(dataclasses.asdict(config)))
    assert trained_config(Path("x"), {"config": fields}) == config


def test_kernels_of_training_needn_t_be_built_here():
    for kernels, expected in (("native", "auto"), ("auto", "auto"), ("jax", "jax")):
        assert for_prediction(dataclasses.replace(CONFIG, kernels=kernels), 8).kernels == expected


def test_a_batch_size_beyond_the_rows_is_cut():
    """Memory is that of the rows; up to 65,536, the same program serves any number of them."""
    assert limited(8192, 306, 8) == 8192
    assert limited(10**9, 306, 8) == 65_536
    assert limited(10**9, 0, 3) == 65_538, "which the mesh divides"
    assert limited(10**9, 70_000, 8) == 131_072
    assert limited(100_000, 70_000, 8) == 100_000
    assert limited(100_000, 10**9, 8) == 100_000
