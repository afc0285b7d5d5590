"""A problem that is small enough to be solved in a moment, and with tables that matter to it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dlrm_jax.config import Config
from experiments.benchmarks.peers.drawing import draw_examples, draw_weights, make_problem
from experiments.benchmarks.peers.problem import Mode, Optimizer, Precision, Problem

CONFIG = Config(
    table_rows=(7, 40, 3),
    bag_lengths=(1, 5, 2),
    embedding_dim=4,
    bottom_mlp=(8, 4),
    top_mlp=(8, 1),
    batch_size=32,
)


def draw(
    directory: Path,
    mode: Mode,
    optimizer: Optimizer,
    full_bags: bool = False,
    precision: Precision = "float32",
) -> Problem:
    """The problem, with its files in the directory."""
    config = dataclasses.replace(CONFIG, compute_dtype=precision)
    problem = make_problem(config, mode, optimizer, directory, directory)
    draw_weights(problem, seed=0)
    draw_examples(CONFIG, directory, full_bags)
    # Much is learnt in few steps.
    return dataclasses.replace(problem, learning_rate=0.5 if optimizer == "sgd" else 0.05)
