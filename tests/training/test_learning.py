"""On the generated data, DLRM learns what simpler models can't."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import ABSENT, Dataset, Examples, Split
from dlrm_jax.data.batches import TrainBatches
from dlrm_jax.mesh import make_mesh
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.config_data import generate_data
from dlrm_jax.training.evaluation import evaluate
from dlrm_jax.training.metrics import auc
from dlrm_jax.training.step import make_predict, make_train_step

CONFIG = Config(examples=400_000)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return generate_data(CONFIG)


def dlrm_auc(train: Split, test: Split) -> float:
    learner = make_learner(dataclasses.replace(CONFIG), make_mesh("1x1"))
    state, step = learner.init(CONFIG.seed), make_train_step(learner)
    batches = TrainBatches(train, CONFIG.batch_size, CONFIG.seed)
    for i in range(batches.steps_per_epoch):
        state, _ = step(state, learner.put(batches[i]))
    size = CONFIG.evaluation_batch_size
    return float(evaluate(learner, make_predict(learner), state, test, size)["auc"])


def without_ids(split: Split) -> Split:
    (day,) = split.days
    return Split((Examples(day.dense, np.full_like(day.ids, ABSENT), day.labels),))


def one_hot(examples: Examples, rows: tuple[int, ...]) -> Any:
    columns = examples.ids + np.concatenate([[0], np.cumsum(rows)[:-1]])
    indices = columns.reshape(-1)
    pointers = np.arange(0, indices.size + 1, len(rows))
    hot = sparse.csr_matrix(
        (np.ones(indices.size, np.float32), indices, pointers), (len(examples), sum(rows))
    )
    return sparse.hstack([hot, sparse.csr_matrix(examples.dense)], format="csr")


@pytest.mark.thorough
def test_dlrm_passes_what_has_no_interactions_and_what_has_no_categories(data: Dataset):
    assert data.teacher_auc is not None
    teacher = data.teacher_auc["test"]
    assert 0.78 < teacher < 0.85
    assert sum(data.table_rows) > 100_000

    logistic = LogisticRegression(C=0.1, solver="liblinear")
    (train,), (test,) = data.train[:150_000].days, data.test.days
    logistic.fit(one_hot(train, data.table_rows), train.labels)
    scores = logistic.decision_function(one_hot(test, data.table_rows))
    assert auc(scores, test.labels) < teacher - 0.02

    # A quarter of the main job's examples already come close to the teacher.
    dlrm = dlrm_auc(data.train, data.test)
    assert teacher - 0.03 < dlrm < teacher + 0.005
    dense_only = dlrm_auc(without_ids(data.train), without_ids(data.test))
    assert dense_only < dlrm - 0.05
