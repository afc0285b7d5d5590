"""Runs to convert, files of PyTorch's models, and PyTorch's forward pass with loops in NumPy."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from dlrm_jax.config import Config
from dlrm_jax.conversion.foreign_model import ForeignModel
from dlrm_jax.conversion.imported import Importer
from dlrm_jax.conversion.tensor_names import Format
from dlrm_jax.data.arrays import Split

DLRM = Config(
    table_rows=(9, 30, 12),
    bag_lengths=(1, 3, 2),
    embedding_dim=4,
    dense_features=3,
    bottom_mlp=(6, 4),
    top_mlp=(7, 5, 1),
    table_optimizers=("C1=sgd:0.1",),
)
DCN = dataclasses.replace(DLRM, model="dcn_v2", model_options=("layers=2", "rank=3"))
KINDS: dict[str, tuple[Config, Format]] = {
    "dlrm": (DLRM, "dlrm"),
    "torchrec": (DLRM, "torchrec"),
    "dcn": (DCN, "torchrec"),
}
TABLE = "sparse_arch.embedding_bag_collection.embedding_bags.{}.weight"


def importer(path: Path, config: Config, order: tuple[str, ...] = ()) -> Importer:
    return Importer(ForeignModel.open(path, table_order=order), config, None)


def mlp(x: np.ndarray, tensors: Mapping[str, np.ndarray], names: list[str]) -> np.ndarray:
    """Linear layers of PyTorch, with a ReLU after each but one without a number, the last."""
    for name in names:
        x = x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]
        x = x if name == names[-1] and len(tensors[f"{name}.bias"]) == 1 else np.maximum(x, 0)
    return x


def predictions(
    path: Path, tables: list[str], rows: Split, config: Config, upper: bool
) -> np.ndarray:
    """What a file's model predicts, as PyTorch's code says it.

    Args:
        path: safetensors file of either format.
        tables: names of the tables' tensors, in the order of the model.
        rows: examples, whose columns of ids are those of the tables C1, C2, ….
        config: settings, for the lengths of bags.
        upper: whether pairs are those of the upper triangle.
    """
    tensors = {name: array.astype(np.float64) for name, array in load_file(path).items()}
    if upper:
        bottom = [f"dense_arch.model._mlp.{i}._linear" for i in range(2)]
        top = [f"over_arch.model.0._mlp.{i}._linear" for i in range(2)] + ["over_arch.model.1"]
    else:
        bottom, top = ["bot_l.0", "bot_l.2"], ["top_l.0", "top_l.2", "top_l.4"]
    dense = np.concatenate([day.dense for day in rows.days])
    ids = np.concatenate([day.ids for day in rows.days])
    bags = np.split(ids, np.cumsum(config.table_bag_lengths)[:-1], axis=1)
    first = mlp(dense, tensors, bottom)
    vectors = [first]
    for name in tables:
        ids = bags[int(re.findall(r"\d+", name)[-1]) - upper]  # those of the reference from 0
        vectors.append(np.stack([tensors[name][bag[bag >= 0]].sum(axis=0) for bag in ids]))
    crosses = sum("crossnet.bias" in name for name in tensors)
    if crosses:
        start = x = np.concatenate(vectors, axis=1)
        for i in range(crosses):
            v, w, b = (
                tensors[f"inter_arch.crossnet.{kind}.{i}"]
                for kind in ("V_kernels", "W_kernels", "bias")
            )
            x = start * (x @ v.T @ w.T + b) + x
    else:
        pairs = [*itertools.combinations(range(len(vectors)), 2)]
        pairs = pairs if upper else sorted(pairs, key=lambda pair: pair[::-1])
        dots = [(vectors[i] * vectors[j]).sum(axis=1) for i, j in pairs]
        x = np.concatenate([first, np.stack(dots, axis=1)], axis=1)
    return 1 / (1 + np.exp(-mlp(x, tensors, top)[:, 0]))
