"""The problem of all contestants: sizes, and the files of shared weights and batches.

Workers of either environment import it, so it needs NumPy only.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

Mode = Literal["train", "infer"]
Optimizer = Literal["sgd", "rowwise_adagrad"]
Precision = Literal["float32", "bfloat16"]


class Arrays(NamedTuple):
    """One batch, as stored.

    Attributes:
        dense: dense features, [B, D] float32.
        ids: ids, [B, C] int32; the bags of all tables side by side, -1 for an absent id.
        labels: 0 or 1, [B] float32.
    """

    dense: np.ndarray
    ids: np.ndarray
    labels: np.ndarray


class Bags(NamedTuple):
    """The bags of one table in a batch, in the form of PyTorch's operators.

    Attributes:
        ids: ids of all samples, one after the other, int64.
        offsets: start of each sample's bag, and the end of the last, [B + 1] int64.
    """

    ids: np.ndarray
    offsets: np.ndarray


@dataclasses.dataclass(frozen=True)
class Problem:
    """DLRM with dot interaction and mean binary cross-entropy, with its initial weights.

    Attributes:
        precision: type that the dense part computes in. Parameters, tables, their optimizers and
            the loss are float32.
        optimizer: optimizer of the tables. ``"rowwise_adagrad"`` goes with element-wise Adagrad of
            the MLPs.
        eps: eps of Adagrad, outside of the root.
        zipf_exponent: Zipf exponent of the ids; 0 for uniform.
        bag_lengths: maximum number of ids in a bag of each table.
        embedding_dim: width of the tables, d.
        dense_features: number of dense features, D.
        bottom_mlp: widths of its layers, a ReLU after each.
        top_mlp: widths of its layers; the last is the logit, without a ReLU.
        batches: number of batches; steps repeat them.
        weights: directory of ``table_N.npy`` and of ``bottom_N_weight.npy`` and the like.
        examples: directory of ``dense.npy``, ``ids.npy`` and ``labels.npy``, [batches, B, …].
    """

    mode: Mode
    precision: Precision
    optimizer: Optimizer
    learning_rate: float
    eps: float
    zipf_exponent: float
    table_rows: tuple[int, ...]
    bag_lengths: tuple[int, ...]
    embedding_dim: int
    dense_features: int
    bottom_mlp: tuple[int, ...]
    top_mlp: tuple[int, ...]
    batch_size: int
    batches: int
    weights: str
    examples: str

    @classmethod
    def from_json(cls, text: str) -> Problem:
        """Reads a line that `to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        tuples: dict[str, Any] = {k: tuple(v) for k, v in fields.items() if isinstance(v, list)}
        return cls(**fields | tuples)

    def to_json(self) -> str:
        """The problem as one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @property
    def interaction_width(self) -> int:
        """The width of the top MLP's input: the dense vector and the products of all pairs."""
        vectors = len(self.table_rows) + 1
        return self.embedding_dim + vectors * (vectors - 1) // 2

    def widths(self, mlp: str) -> tuple[int, ...]:
        """Width of the input of ``"bottom"`` or ``"top"``, then of each of its layers."""
        if mlp == "bottom":
            return (self.dense_features, *self.bottom_mlp)
        return (self.interaction_width, *self.top_mlp)

    def table(self, number: int) -> np.ndarray:
        """Initial values [rows, d], a memory map."""
        return np.load(Path(self.weights) / f"table_{number}.npy", mmap_mode="r")

    def layers(self, mlp: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Initial weights [out, in] and biases [out] of the layers of an MLP."""
        files = [Path(self.weights) / f"{mlp}_{i}" for i in range(len(self.widths(mlp)) - 1)]
        return [(np.load(f"{file}_weight.npy"), np.load(f"{file}_bias.npy")) for file in files]

    def batch(self, number: int) -> Arrays:
        """A batch, as memory maps."""
        files = (Path(self.examples) / f"{name}.npy" for name in Arrays._fields)
        return Arrays(*(np.load(file, mmap_mode="r")[number] for file in files))

    def bags(self, number: int) -> list[Bags]:
        """The bags of each table in a batch."""
        ids = self.batch(number).ids
        ends = np.cumsum(self.bag_lengths)
        found = []
        for columns in np.split(ids, ends[:-1], axis=1):
            present = columns >= 0
            offsets = np.concatenate([[0], np.cumsum(present.sum(axis=1))])
            found.append(Bags(columns[present].astype(np.int64), offsets.astype(np.int64)))
        return found


def mean_loss(logits: Any, labels: np.ndarray) -> float:
    """Mean binary cross-entropy in float64, for comparing predictions."""
    logits = np.asarray(logits, np.float64)
    return float(np.mean(np.logaddexp(0, logits) - labels * logits))
