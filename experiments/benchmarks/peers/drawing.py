"""Writes a problem's files: initial weights, and generated batches."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.data.generated.zipf import bounded_zipf
from dlrm_jax.training.config_data import generated_batches
from experiments.benchmarks.peers.problem import Arrays, Mode, Optimizer, Problem

# Two contestants' tables, their optimizer state and temporaries fit into 16 GiB.
_TABLE_BYTES = 2.5 * 2**30

# Several batches, so that the cache doesn't contain the rows of the next one.
_BATCHES = 20

# Small enough that rounding isn't amplified: at ten times these rates the loss overshoots in the
# first steps, and after ten the peers differ by 1e-4 from one another.
_LEARNING_RATES: dict[Optimizer, float] = {"sgd": 0.01, "rowwise_adagrad": 0.0001}
_EPS = 1e-6  # with 1e-8 the first steps of Adagrad depend on the signs of gradients that round to 0

_CHUNK = 1 << 20


def cut(config: Config, max_rows: int) -> Config:
    """The config with tables of at most so many rows; 0 for as many as fit into memory."""
    if not max_rows:
        row_bytes = 4 * config.embedding_dim
        max_rows = max(config.table_rows)
        while sum(min(rows, max_rows) for rows in config.table_rows) * row_bytes > _TABLE_BYTES:
            max_rows = max_rows * 9 // 10
    return dataclasses.replace(
        config, table_rows=tuple(min(rows, max_rows) for rows in config.table_rows)
    )


def make_problem(
    config: Config, mode: Mode, optimizer: Optimizer, weights: Path, examples: Path
) -> Problem:
    """The problem for the files of `draw_weights` and `draw_examples`."""
    return Problem(
        mode=mode,
        precision=config.compute_dtype,
        optimizer=optimizer,
        learning_rate=_LEARNING_RATES[optimizer],
        eps=_EPS,
        zipf_exponent=config.zipf_exponent,
        table_rows=config.table_rows,
        bag_lengths=config.table_bag_lengths,
        embedding_dim=config.embedding_dim,
        dense_features=config.dense_features,
        bottom_mlp=config.bottom_mlp,
        top_mlp=config.top_mlp,
        batch_size=config.batch_size,
        batches=_BATCHES,
        weights=str(weights),
        examples=str(examples),
    )


def draw_weights(problem: Problem, seed: int) -> None:
    """Writes tables and layers, drawn from the distributions of the DLRM reference."""
    directory = Path(problem.weights)
    for number, rows in enumerate(problem.table_rows):
        rng = np.random.default_rng([seed, 0, number])
        shape = (rows, problem.embedding_dim)
        table = np.lib.format.open_memmap(
            directory / f"table_{number}.npy", "w+", np.dtype(np.float32), shape
        )
        bound = np.float32(rows**-0.5)
        for start in range(0, rows, _CHUNK):
            chunk = table[start : start + _CHUNK]
            chunk[:] = (2 * rng.random(chunk.shape, np.float32) - 1) * bound
    rng = np.random.default_rng([seed, 1])
    for mlp in ("bottom", "top"):
        for number, (fan_in, fan_out) in enumerate(itertools.pairwise(problem.widths(mlp))):
            weight = rng.normal(0, (2 / (fan_in + fan_out)) ** 0.5, (fan_out, fan_in))
            bias = rng.normal(0, fan_out**-0.5, fan_out)
            np.save(directory / f"{mlp}_{number}_weight.npy", weight.astype(np.float32))
            np.save(directory / f"{mlp}_{number}_bias.npy", bias.astype(np.float32))


def draw_examples(config: Config, directory: Path, full_bags: bool) -> None:
    """Writes the batches.

    ``full_bags`` fills every bag up to its length, with ids of the same distribution.
    """
    batches = list(generated_batches(config, _BATCHES))
    for name in Arrays._fields:
        stacked = np.stack([getattr(batch, name) for batch in batches])
        if name == "ids" and full_bags:
            _fill(stacked, config)
        np.save(directory / f"{name}.npy", stacked)


def _fill(ids: np.ndarray, config: Config) -> None:
    """Replaces absent ids in ``ids`` [batches, B, C]."""
    rng = np.random.default_rng([config.seed, 2])
    rows = np.repeat(config.table_rows, config.table_bag_lengths)
    for column, count in enumerate(rows.tolist()):
        absent = ids[:, :, column] == ABSENT
        drawn = bounded_zipf(rng, count, config.zipf_exponent, (int(absent.sum()),))
        ids[:, :, column][absent] = drawn
