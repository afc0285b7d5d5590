"""Trains a ranking model of one size on examples of planted products, one epoch."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Mapping
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int32

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset, Examples, Split
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.config_data import train_batches
from dlrm_jax.training.evaluation import predictions
from dlrm_jax.training.loop import Intervals, train
from dlrm_jax.training.metrics import binary_metrics
from dlrm_jax.training.step import make_predict, make_train_step
from experiments.benchmarks.roofline import matrix_flops
from experiments.scaling.cell import Cell, Measured
from experiments.scaling.planted_products import FIELDS, Drawn, generate, planted_products
from experiments.scaling.sizes import Size

_SEED = 0  # of the data
_BATCH, _EVALUATED = 256, 4096
_WARMUP = 20  # steps; then the rate falls to 0 by the end
_VALIDATION, _TEST = 20_000, 80_000


def config_of(cell: Cell, kernels: Literal["auto", "jax"] = "auto") -> Config:
    """The config of a cell: all widths are multiples of the cell's.

    Args:
        cell: the cell.
        kernels: kernels of the step, see `Config`.
    """
    width, layers = cell.size.width, cell.size.layers
    options: Mapping[str, tuple[str, ...]] = {
        "dlrm": (),
        "wukong": (
            f"layers={layers}", f"fmb={width // 2}", f"lcb={width // 2}", f"rank={width // 2}",
            f"fmb_mlp={4 * width}",
        ),
        "rankmixer": (f"layers={layers}", f"tokens={FIELDS}", f"token_width={2 * width}"),
    }  # fmt: skip
    hidden = layers if cell.model == "dlrm" else 1
    steps = cell.samples // _BATCH
    warmup = min(_WARMUP, steps // 2)
    return Config(
        table_rows=(cell.size.rows,) * FIELDS,
        embedding_dim=width,
        dense_features=0,
        bottom_mlp=(width,),
        top_mlp=(*[4 * width] * hidden, 1),
        model=cell.model,
        model_options=options[cell.model],
        optimizer="adam",
        learning_rate=cell.learning_rate,
        warmup_steps=warmup,
        decay_start=warmup,
        decay_steps=steps - warmup,
        batch_size=_BATCH,
        evaluation_batch_size=_EVALUATED,
        examples=cell.samples,
        kernels=kernels,
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
    config, drawn = config_of(cell), drawn_for(cell.samples)
    data = dataset(drawn, cell.samples, cell.size)
    learner, batches = make_learner(config, mesh), train_batches(config, data)
    state, step = learner.init(config.seed), make_train_step(learner)
    flops = matrix_flops(step, state, learner.put(batches[0])) / _BATCH
    parameters = sum(t.rows * t.dim for t in learner.collection.tables.values())
    parameters += sum(x.size for x in jax.tree.leaves(state.params))
    steps = batches.steps_per_epoch
    trained = train(
        learner, step, state, batches, steps, Intervals(0, steps, 0),
        validate=None, keep=lambda *_: False, record=lambda *_: None,
    )  # fmt: skip
    predict, excess, best = make_predict(learner), {}, {}
    parts = {"validation": slice(cell.samples, -_TEST), "test": slice(-_TEST, None)}
    for name, part in parts.items():
        found = predictions(learner, predict, trained.state, data.splits[name], _EVALUATED)
        labels = drawn.labels[part]
        best[name] = _entropy(drawn.logits[part], labels)
        excess[name] = _entropy(np.concatenate(list(found)), labels) - best[name]
    seconds = time.perf_counter() - start
    return Measured(parameters, flops, best["test"], **excess, seconds=seconds)


@functools.cache
def drawn_for(samples: int) -> Drawn:
    """The examples of training, validation and test, in this order."""
    return generate(planted_products(_SEED), samples + _VALIDATION + _TEST, _SEED)


def dataset(drawn: Drawn, samples: int, size: Size) -> Dataset:
    """The examples as a model with tables of some size gets them.

    Args:
        drawn: examples.
        samples: number of those for training.
        size: size of the model.
    """
    ids: Int32[np.ndarray, "N F"] = drawn.ids % np.int32(size.rows)
    dense: Float32[np.ndarray, "N 0"] = np.zeros((len(ids), 0), np.float32)
    ends = (0, samples, len(ids) - _TEST, len(ids))
    splits = [
        Split((Examples(dense[first:end], ids[first:end], drawn.labels[first:end]),))
        for first, end in itertools.pairwise(ends)
    ]
    return Dataset(
        *splits,
        table_rows=(size.rows,) * FIELDS,
        bag_lengths=(1,) * FIELDS,
        fingerprint=f"planted products, {samples} examples",
        source=f"{samples:,} examples of planted products",
    )


def _entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(binary_metrics(logits, labels)["normalized_entropy"])
