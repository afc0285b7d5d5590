"""Criteo-shaped examples drawn from a known distribution.

Ids follow Zipf's law, like the ids of click logs. A *planted teacher* draws the labels, so the best
AUC that any model can reach is known. Most of the teacher's signal is in products of categorical
features: a model without interactions has a visibly lower AUC.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float32

from dlrm_jax.data.arrays import Dataset, Examples, Split
from dlrm_jax.data.auc import auc
from dlrm_jax.data.generated.teacher import Teacher, TeacherKind, check_ranges, sigmoid
from dlrm_jax.errors import UserError

GENERATOR_VERSION = 1
"""It enters the fingerprint; raise it with every change of the generated numbers."""

_CHUNK = 1 << 15


def generate(
    table_rows: Sequence[int],
    bag_lengths: Sequence[int],
    dense_features: int,
    examples: int,
    zipf_exponent: float,
    seed: int,
    labels_from: TeacherKind = "pairs",
) -> Dataset:
    """Draws a data set; the result depends on the arguments only.

    Dense features are log(1 + x) of heavy-tailed counts x. Bags longer than 1 hold a uniform number
    of ids from 1 to their length, then padding. The teacher's logit is the sum of products of
    factors of ids (ten pairs of small tables), one effect per id, and a small linear function of
    the dense features; about a quarter of the labels are 1.

    Args:
        table_rows: rows of each categorical feature's table.
        bag_lengths: largest number of ids per example of each categorical feature.
        dense_features: number of dense features.
        examples: number of examples: the first 80 % train, 10 % validation, 10 % test.
        zipf_exponent: exponent s of Zipf's law; 0 makes ids uniform.
        seed: seed of the teacher and the examples.
        labels_from: kind of the teacher; ``"additive"`` omits the products, ``"sequential"`` has a
            `Succession` in their place: the first feature with several ids is a history, the latest
            id first, and the first one of a single id and as many rows is the candidate.

    Raises:
        UserError: an argument is out of its range.
    """
    table_rows, bag_lengths = tuple(map(int, table_rows)), tuple(map(int, bag_lengths))
    dense_features, examples, seed = int(dense_features), int(examples), int(seed)
    if not table_rows or len(table_rows) != len(bag_lengths):
        raise UserError(
            "generated data needs at least one table and one bag length for each table, got "
            f"{len(table_rows)} tables and {len(bag_lengths)} bag lengths."
        )
    check_ranges(("examples", examples, 10, 2**63 - 1))  # with ten, every split has one
    teacher = Teacher(table_rows, bag_lengths, dense_features, zipf_exponent, seed, labels_from)
    dense = np.empty((examples, dense_features), np.float32)
    ids = np.empty((examples, sum(bag_lengths)), np.int32)
    logits, labels = np.empty(examples, np.float32), np.empty(examples, np.float32)

    def draw(start: int) -> None:
        rng = np.random.default_rng([seed, 1, start])
        chunk = slice(start, min(start + _CHUNK, examples))
        size = chunk.stop - start
        dense[chunk], ids[chunk] = teacher.draw_features(rng, size)
        logits[chunk] = teacher.logits(dense[chunk], ids[chunk])
        labels[chunk] = rng.random(size, dtype=np.float32) < sigmoid(logits[chunk])

    # Each chunk has its own generator, so the order doesn't matter; NumPy works without the lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(draw, range(0, examples, _CHUNK)):
            pass

    train_end, validation_end = examples * 8 // 10, examples * 9 // 10
    bounds = {
        "train": slice(0, train_end),
        "validation": slice(train_end, validation_end),
        "test": slice(validation_end, examples),
    }
    splits = {name: Split((Examples(dense[s], ids[s], labels[s]),)) for name, s in bounds.items()}
    return Dataset(
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        table_rows=table_rows,
        bag_lengths=bag_lengths,
        fingerprint=fingerprint(
            table_rows, bag_lengths, dense_features, examples, zipf_exponent, seed, labels_from
        ),
        source=(
            f"{examples:,} generated examples, {len(table_rows)} tables with "
            f"{sum(table_rows):,} rows, Zipf exponent {zipf_exponent:g}, seed {seed}"
        ),
        teacher_auc=_TeacherAuc(logits, labels, bounds),
    )


class _TeacherAuc(Mapping[str, float]):
    """The AUC of each split, computed when it is read: a run reads one, at its end.

    Args:
        logits: true log odds of label 1 of all examples.
        labels: labels of all examples.
        bounds: examples of each split.
    """

    def __init__(
        self,
        logits: Float32[np.ndarray, " N"],
        labels: Float32[np.ndarray, " N"],
        bounds: Mapping[str, slice],
    ):
        self._logits, self._labels, self._bounds = logits, labels, bounds
        self._found: dict[str, float] = {}

    def __getitem__(self, split: str) -> float:
        if split not in self._found:
            examples = self._bounds[split]
            self._found[split] = auc(self._logits[examples], self._labels[examples])
        return self._found[split]

    def __iter__(self) -> Iterator[str]:
        return iter(self._bounds)

    def __len__(self) -> int:
        return len(self._bounds)


def fingerprint(
    table_rows: Sequence[int],
    bag_lengths: Sequence[int],
    dense_features: int,
    examples: int,
    zipf_exponent: float,
    seed: int,
    labels_from: TeacherKind = "pairs",
) -> str:
    """The fingerprint of what `generate` makes of the same arguments."""
    # The same for NumPy's integers.
    rows, lengths = tuple(map(int, table_rows)), tuple(map(int, bag_lengths))
    numbers = (int(dense_features), int(examples), float(zipf_exponent), int(seed))
    options = ("synthetic", GENERATOR_VERSION, rows, lengths, *numbers, labels_from)
    return hashlib.blake2b(repr(options).encode(), digest_size=16).hexdigest()
