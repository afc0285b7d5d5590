"""The step of requests against a float64 oracle in NumPy, on several meshes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from random_requests import COLUMNS, ROWS, random_requests

from dlrm_jax.mesh import as_mesh
from dlrm_jax.requests.batches import RequestTraining, evaluation_batches
from dlrm_jax.requests.evaluation import Evaluation
from dlrm_jax.requests.histories import tokens_of
from dlrm_jax.requests.model import learner_for
from dlrm_jax.requests.settings import RequestSettings
from dlrm_jax.requests.step import make_request_step
from dlrm_jax.sequential.dealing import deal_batches

REQUESTS = random_requests(40, longest=30, most=5)
TRAIN, STEPS = np.arange(3, 40), 3
MEAN = RequestSettings(
    encoder="mean", width=4, max_length=20, history_sampling=6, mlp=(6,), batch_size=8,
    learning_rate=0.01, eval_length=30,
)  # fmt: skip


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def wide(state: Any) -> Any:
    """A state with all that is floating in float64."""

    def cast(x: Any) -> Any:
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        return jax.device_put(x.astype("float64"), x.sharding) if is_float else x

    return dataclasses.replace(
        state,
        params=jax.tree.map(cast, state.params),
        optimizer=jax.tree.map(cast, state.optimizer),
    )


def tables_of(learner: Any, state: Any) -> dict[str, np.ndarray]:
    numbers = {name: np.arange(rows, dtype=np.int32) for name, rows in ROWS.items()}
    rows = learner.collection.read_rows(state.embedding, numbers)
    return {name: np.asarray(x) for name, x in rows.items()}


@functools.lru_cache(maxsize=8)
def trained(settings: RequestSettings, mesh: str):
    """Losses of some steps, the tables after them, logits, and the parameters before."""
    devices = as_mesh(mesh)
    batches = RequestTraining(REQUESTS, TRAIN, settings, devices.size)
    learner = learner_for(COLUMNS, ROWS, batches.shapes, settings, devices, "float64")
    state, losses, step = wide(learner.init(0)), [], make_request_step(learner)
    start = jax.tree.map(np.asarray, state.params), tables_of(learner, state)
    for number in range(STEPS):
        state, loss = step(state, learner.put(batches[number]))
        losses.append(float(loss))
    evaluation = Evaluation(learner, REQUESTS, batches.shapes, settings)
    logits = evaluation.logits(state, np.arange(40))
    return np.asarray(losses), tables_of(learner, state), logits, start


class Oracle:
    """The mean of the history, an MLP of two layers and Adam, for one candidate after the other."""

    def __init__(self, settings: RequestSettings):
        *_, (params, tables) = trained(settings, "1x1")
        layers = params["head"]["layers"]
        self.dense = {
            f"{name}{i}": np.array(layers[i][name]) for i in (0, 1) for name in ("kernel", "bias")
        }
        self.tables = {name: np.array(x) for name, x in tables.items()}
        self.settings = settings
        self.slots = {
            name: oracle.new_slots("adam", x) for name, x in {**self.tables, **self.dense}.items()
        }

    def forward(self, request: int, place: int, tokens: np.ndarray):
        item, action = self.tables["item"], self.tables["action"]
        seen = [
            item[REQUESTS.history["seen"][t]] + action[REQUESTS.history["did"][t]] for t in tokens
        ]
        mean = sum(seen) / len(seen) if seen else np.zeros(self.settings.width)
        own = item[REQUESTS.candidates["item"][place]]
        x = np.concatenate(
            [mean, own, mean * own, self.tables["country"][REQUESTS.context["country"][request]]]
        )
        hidden = x @ self.dense["kernel0"] + self.dense["bias0"]
        logit = np.maximum(hidden, 0) @ self.dense["kernel1"] + self.dense["bias1"]
        return mean, own, x, hidden, float(logit[0])

    def step(self, number: int, chosen: np.ndarray) -> float:
        settings, loss = self.settings, 0.0
        grads = {name: np.zeros_like(x) for name, x in {**self.tables, **self.dense}.items()}
        touched = {name: set() for name in self.tables}
        total = REQUESTS.counts[chosen].sum()
        for request in chosen:
            tokens = tokens_of(
                REQUESTS, int(request), settings.max_length, settings.history_sampling
            )
            for place in range(*REQUESTS.candidate_offsets[request : request + 2]):
                mean, own, x, hidden, logit = self.forward(request, place, tokens)
                label = float(REQUESTS.labels[place])
                loss += (np.logaddexp(0, logit) - label * logit) / total
                of_logit = np.array([1 / (1 + np.exp(-logit)) - label]) / total
                grads["kernel1"] += np.outer(np.maximum(hidden, 0), of_logit)
                grads["bias1"] += of_logit
                of_hidden = self.dense["kernel1"] @ of_logit * (hidden > 0)
                grads["kernel0"] += np.outer(x, of_hidden)
                grads["bias0"] += of_hidden
                of_mean, of_own, of_product, of_country = np.split(
                    self.dense["kernel0"] @ of_hidden, 4
                )
                rows = [
                    ("item", REQUESTS.candidates["item"][place], of_own + of_product * mean),
                    ("country", REQUESTS.context["country"][request], of_country),
                ]
                for t in tokens:
                    of_token = (of_mean + of_product * own) / len(tokens)
                    rows.append(("item", REQUESTS.history["seen"][t], of_token))
                    rows.append(("action", REQUESTS.history["did"][t], of_token))
                for table, row, gradient in rows:
                    grads[table][row] += gradient
                    touched[table].add(row)
        for name, w in {**self.tables, **self.dense}.items():
            at = sorted(touched[name]) if name in touched else slice(None)
            rate = settings.learning_rate
            oracle.FORMULAS["adam"].update(
                w, self.slots[name], at, grads[name][at], rate, 1e-8, number + 1
            )
        return loss


@pytest.mark.parametrize(
    "mesh",
    ["2x4", *(pytest.param(mesh, marks=pytest.mark.thorough) for mesh in ("1x1", "4x2", "1x8"))],
)
@pytest.mark.parametrize("one_by_one", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_the_step_is_the_oracles(mesh: str, one_by_one: bool):
    settings = dataclasses.replace(MEAN, one_by_one=one_by_one)
    losses, tables, logits, _ = trained(settings, mesh)
    slow = Oracle(settings)
    lengths = np.minimum(REQUESTS.lengths[TRAIN], settings.max_length)
    dealt = deal_batches(lengths * REQUESTS.counts[TRAIN] if one_by_one else lengths, 8, 0, 0)
    expected = [slow.step(number, TRAIN[dealt[number]]) for number in range(STEPS)]
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    for name, table in tables.items():
        np.testing.assert_allclose(table, slow.tables[name], rtol=1e-9, atol=1e-9)
    scored = [
        slow.forward(request, place, tokens_of(REQUESTS, request, 30))[-1]
        for request in range(40)
        for place in range(*REQUESTS.candidate_offsets[request : request + 2])
    ]
    np.testing.assert_allclose(logits, scored, rtol=1e-9, atol=1e-9)


def test_one_by_one_gives_the_logits_of_whole_requests():
    *_, (_, _) = together = trained(MEAN, "1x1")
    batches = RequestTraining(REQUESTS, TRAIN, MEAN, 2)
    alone = dataclasses.replace(MEAN, one_by_one=True)
    of_one = RequestTraining(REQUESTS, TRAIN, alone, 2)
    assert of_one.shapes.sequences == of_one.shapes.candidates > 1
    mesh = as_mesh("2x1")
    found = []
    for training, settings in ((batches, MEAN), (of_one, alone)):
        learner = learner_for(COLUMNS, ROWS, training.shapes, settings, mesh, "float64")
        evaluation = Evaluation(learner, REQUESTS, training.shapes, settings)
        found.append(evaluation.logits(wide(learner.init(0)), np.arange(40)))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9, atol=1e-9)
    assert len(together[2]) == len(found[0])


def test_another_epoch_reads_another_sample():
    batches = RequestTraining(REQUESTS, TRAIN, MEAN, 1)
    long = next(i for i in TRAIN if REQUESTS.lengths[i] > MEAN.max_length)
    found = [tokens_of(REQUESTS, int(long), 20, 6, 0, epoch) for epoch in (0, 0, 1)]
    end = REQUESTS.history_offsets[long + 1]
    for tokens in found:
        assert len(tokens) == 20
        assert (np.diff(tokens) > 0).all()
        np.testing.assert_array_equal(tokens[-14:], np.arange(end - 14, end))
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    first, again = batches[0], batches[0]
    np.testing.assert_array_equal(first.ids, again.ids)


def test_each_candidate_is_evaluated_once():
    batches = RequestTraining(REQUESTS, TRAIN, MEAN, 4)
    numbers, places = np.arange(0, 40, 2), []
    for _, found in evaluation_batches(REQUESTS, numbers, batches.shapes, MEAN):
        places += found[found >= 0].tolist()
    np.testing.assert_array_equal(np.sort(places), REQUESTS.candidates_of(numbers))


@pytest.mark.parametrize(
    ("encoder", "mesh"),
    [
        ("hstu", "2x4"),
        pytest.param("stca", "2x4", marks=pytest.mark.thorough),
        *(
            pytest.param(encoder, mesh, marks=pytest.mark.thorough)
            for encoder in ("stca", "hstu")
            for mesh in ("4x2", "1x8")
        ),
    ],
)
def test_encoders_are_the_same_on_every_mesh(encoder: str, mesh: str):
    options = {"encoder_width": 6, "attention_width": 3, "linear_width": 2, "dropout": 0.2}
    options |= {"layers": 1}  # each takes seconds to compile
    settings = dataclasses.replace(
        MEAN, encoder=encoder, **(options if encoder == "hstu" else {"encoder_width": 6})
    )
    one, other = trained(settings, "1x1"), trained(settings, mesh)
    np.testing.assert_allclose(other[0], one[0], rtol=1e-9)
    for name, table in one[1].items():
        np.testing.assert_allclose(other[1][name], table, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(other[2], one[2], rtol=1e-9, atol=1e-9)
