"""Trains HSTU of one size on sessions of a planted order, one epoch."""

from __future__ import annotations

import functools
import time

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float64, Int64

from dlrm_jax.sequential.batches import SequenceTraining
from dlrm_jax.sequential.evaluation import Evaluation
from dlrm_jax.sequential.interactions import Interactions
from dlrm_jax.sequential.model import learner_for
from dlrm_jax.sequential.packing import SequenceBatch
from dlrm_jax.sequential.questions import Questions, Split, split_of
from dlrm_jax.sequential.settings import SequentialSettings
from dlrm_jax.sequential.step import make_sequential_step
from dlrm_jax.training.device_step import DeviceStep
from dlrm_jax.training.learner import TrainState
from dlrm_jax.training.loop import Intervals, train
from experiments.benchmarks.roofline import matrix_flops
from experiments.next_item.planted_order import (
    PlantedOrder,
    generate,
    planted_order,
    planted_probabilities,
)
from experiments.scaling.cell import Cell, Measured

_SEED = 0  # of the data
_ITEMS, _LONGEST, _QUESTIONS = 50, 60, 2000
_TOKENS = 512  # of a batch, about, whatever the longest history


def settings_of(cell: Cell) -> SequentialSettings:
    """The settings of a cell."""
    width, length = cell.size.width, cell.size.length
    return SequentialSettings(
        encoder="hstu",
        max_length=length,
        width=width,
        layers=cell.size.layers,
        dropout=0.0,
        normalize=False,
        temperature=1.0,
        batch_size=max(1, min(_TOKENS // length, cell.samples)),
        learning_rate=cell.learning_rate,
        epochs=1,
        seed=cell.seed,
    )


def run(cell: Cell, mesh: Mesh) -> Measured:
    """Trains and evaluates a cell.

    Args:
        cell: the cell.
        mesh: mesh of one device.

    Raises:
        UserError: see `train`.
    """
    start = time.perf_counter()
    settings = settings_of(cell)
    order, interactions, split = sessions(cell.samples)
    batches = SequenceTraining(interactions, split.train, settings, mesh.size)
    learner = learner_for(_ITEMS, batches.shapes, settings, mesh)
    state, step = learner.init(settings.seed), make_sequential_step(learner, settings)
    flops = token_flops(step, state, learner.put(batches[0]), settings)
    parameters = _ITEMS * settings.width + sum(x.size for x in jax.tree.leaves(state.params))
    steps = batches.steps_per_epoch
    trained = train(
        learner, step, state, batches, steps, Intervals(0, steps, 0),  # pyright: ignore[reportArgumentType]
        validate=None, keep=lambda *_: False, record=lambda *_: None,
    )  # fmt: skip
    evaluation = Evaluation(learner, interactions, batches.shapes, settings)
    seen = np.bincount(interactions.items, minlength=_ITEMS) / len(interactions)
    entropy = -float(seen @ np.log(seen))
    best, excess = {}, {}
    for name, asked in (("validation", split.validation), ("test", split.test)):
        histories = evaluation.histories(trained.state, asked)
        scores = histories @ evaluation.items(trained.state).T / settings.temperature
        own = scores[np.arange(len(scores)), interactions.items[asked.asked]]
        loss = np.logaddexp.reduce(scores, axis=1) - own
        best[name] = float(planted_loss(order, interactions, asked).mean()) / entropy
        excess[name] = float(loss.mean()) / entropy - best[name]
    seconds = time.perf_counter() - start
    return Measured(parameters, flops, best["test"], **excess, seconds=seconds)


@functools.cache
def sessions(users: int) -> tuple[PlantedOrder, Interactions, Split]:
    """The planted order, the sessions of users, and the last two items of each as questions."""
    order = planted_order(_ITEMS, _SEED)
    interactions = generate(order, users, _LONGEST, _SEED)
    split = split_of(interactions, "leave_one_out")
    kept = (Questions(*(x[:_QUESTIONS] for x in asked)) for asked in (split.validation, split.test))
    return order, interactions, Split(split.train, *kept)


def planted_loss(
    order: PlantedOrder, interactions: Interactions, questions: Questions
) -> Float64[np.ndarray, " Q"]:
    """The cross-entropy of each question for one who knows the order."""
    found = planted_probabilities(order, interactions, questions)
    return -np.log(found[np.arange(len(found)), interactions.items[questions.asked]])


def token_flops(
    step: DeviceStep, state: TrainState, batch: SequenceBatch, settings: SequentialSettings
) -> float:
    """Floating-point operations of products of a training step per token of a sequence.

    Attention counts the pairs of tokens that attend, by a formula: 2 d for a score and 2 d for the
    sum of values, and twice as much backward. What else its loop computes doesn't count: the rest
    of its blocks, and the scores again. Other layers take as much for each token, filling included,
    whose share is that of the batch and not of the model.
    """
    lengths: Int64[np.ndarray, " B"] = np.asarray(batch.lengths).ravel().astype(np.int64)
    pairs = int((lengths * (lengths + 1) // 2).sum())
    attention = 3 * 4 * settings.width * pairs * settings.layers
    outside = matrix_flops(step, state, batch, times=0)
    return outside / batch.items.size + attention / int(lengths.sum())
