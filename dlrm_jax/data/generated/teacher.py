"""The planted teacher: a known distribution of Criteo-shaped examples."""

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int32

from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.data.generated.effects import Effects
from dlrm_jax.data.generated.succession import Succession
from dlrm_jax.data.generated.zipf import bounded_zipf
from dlrm_jax.errors import UserError

TeacherKind = Literal["pairs", "additive", "sequential"]
"""Kind of the logit: with products of features, with effects of single features only, or with what
the order of a history says of a candidate."""

_SAMPLE = 1 << 15  # examples for measuring the teacher's scales
_PLACES = 1 << 25  # most ids that are handled at a time; it changes no number
_CLICK_RATE = 0.25

# Standard deviations of the three terms of the teacher's logit. Together they put its AUC near
# 0.81, the range of the published results on Criteo's data.
_INTERACTION_STD, _MAIN_STD, _DENSE_STD = 1.05, 0.9, 0.25
_PAIRS = 10
_INTERACTING_ROWS = 110


class Teacher:
    """The probability of label 1, given the features of an example.

    Raises:
        UserError: an argument is out of its range.
    """

    def __init__(
        self,
        table_rows: Sequence[int],
        bag_lengths: Sequence[int],
        dense_features: int,
        exponent: float,
        seed: int,
        kind: TeacherKind = "pairs",
    ):
        check_ranges(
            *((f"table_rows[{i}]", rows, 1, 2**31 - 1) for i, rows in enumerate(table_rows)),
            *((f"bag_lengths[{i}]", length, 1, 2**31 - 1) for i, length in enumerate(bag_lengths)),
            ("dense_features", dense_features, 0, 2**31 - 1),
            ("zipf_exponent", exponent, 0, 100),
            ("seed", seed, 0, 2**63 - 1),
        )
        rng = np.random.default_rng([seed, 0])
        self.table_rows, self.bag_lengths, self.exponent = table_rows, bag_lengths, exponent
        self.dense_means = rng.uniform(0.0, 3.0, dense_features).astype(np.float32)
        by_rows = sorted(range(len(table_rows)), key=lambda feature: table_rows[feature])
        varied = [feature for feature in by_rows if table_rows[feature] > 1]
        small = [feature for feature in varied if table_rows[feature] <= _INTERACTING_ROWS]
        candidates = small if len(small) >= 2 else varied[:8]
        possible = [(f, g) for i, f in enumerate(candidates) for g in candidates[:i]]
        chosen = rng.permutation(len(possible))[:_PAIRS]
        self.pairs = [possible[i] for i in chosen] if kind == "pairs" else []
        interacting = {feature for pair in self.pairs for feature in pair}
        self.effects = [
            Effects.draw(rng, rows, exponent, feature in interacting)
            for feature, rows in enumerate(table_rows)
        ]
        self.dense_coefficients = rng.standard_normal(dense_features).astype(np.float32)
        self.history: int | None = None
        if kind == "sequential":
            self.history, self.candidate = _history_and_candidate(table_rows, bag_lengths)
            self.succession = Succession(rng, table_rows[self.history], exponent)
        self.scales, self.bias = np.ones(3, np.float32), np.float32(0)
        self._calibrate(rng)

    def _calibrate(self, rng: np.random.Generator) -> None:
        """Sets the scale of each term and the bias on a sample."""
        dense, parts = self._draw(rng, _SAMPLE)
        terms = self._terms(dense, (ids for _, ids in parts))
        deviations = terms.std(axis=1)
        targets = np.where(deviations > 1e-6, (_INTERACTION_STD, _MAIN_STD, _DENSE_STD), 0.0)
        total = math.hypot(_INTERACTION_STD, _MAIN_STD, _DENSE_STD)
        if targets.any():  # the others share the variance of a missing term
            targets *= total / np.linalg.norm(targets)
        self.scales = (targets / np.where(deviations > 1e-6, deviations, 1)).astype(np.float32)
        logits = self.scales @ terms
        low, high = -20.0, 20.0
        for _ in range(40):
            middle = (low + high) / 2
            too_low = np.mean(sigmoid(logits + np.float32(middle))) < _CLICK_RATE
            low, high = (middle, high) if too_low else (low, middle)
        self.bias = np.float32(low)

    def draw_features(
        self, rng: np.random.Generator, examples: int
    ) -> tuple[Float32[np.ndarray, "N D"], Int32[np.ndarray, "N C"]]:
        """Draws the dense features and the ids of N examples, independent of each other."""
        dense, parts = self._draw(rng, examples)
        ids = np.empty((examples, sum(self.bag_lengths)), np.int32)
        for part, of_part in parts:
            ids[part] = of_part
        return dense, ids

    def _draw(
        self, rng: np.random.Generator, examples: int
    ) -> tuple[Float32[np.ndarray, "N D"], Iterator[tuple[slice, np.ndarray]]]:
        """As `draw_features`, with the ids of one part of the examples after the other."""
        normal = rng.standard_normal((examples, len(self.dense_means)), dtype=np.float32)
        counts = np.floor(np.exp(normal * np.float32(1.5) + self.dense_means - 1))
        # The bags come one after the other from the generator: each has a copy of it at its first.
        own, used = [], []
        for length in self.bag_lengths:
            own.append(copy.deepcopy(rng))
            _skip(rng, examples * length)
            if length > 1:
                used.append(rng.integers(1, length, size=(examples, 1), endpoint=True))
            else:
                used.append(np.ones((examples, 1), np.int64))

        def parts() -> Iterator[tuple[slice, np.ndarray]]:
            for part in self._parts(examples):
                ids = np.empty((part.stop - part.start, sum(self.bag_lengths)), np.int32)
                features = zip(self._bags(ids), self.table_rows, own, used, strict=True)
                for bag, rows, generator, lengths in features:
                    bag[:] = bounded_zipf(generator, rows, self.exponent, bag.shape)
                    bag[np.arange(bag.shape[1]) >= lengths[part]] = ABSENT
                yield part, ids

        return np.log1p(counts), parts()

    def _parts(self, examples: int) -> Iterator[slice]:
        """Parts of the examples with so few ids that they fit into memory, whatever the bags."""
        size = max(1, _PLACES // sum(self.bag_lengths))
        return (slice(i, min(i + size, examples)) for i in range(0, examples, size))

    def _bags(self, ids: Int32[np.ndarray, "N C"]) -> list[np.ndarray]:
        """The columns of each feature, as views."""
        return np.split(ids, np.cumsum(self.bag_lengths)[:-1], axis=1)

    def _terms(
        self, dense: Float32[np.ndarray, "N D"], parts: Iterable[Int32[np.ndarray, "n C"]]
    ) -> Float32[np.ndarray, "3 N"]:
        """The logit's terms before scaling: products of features, effects of ids, dense."""
        terms = np.concatenate([self._terms_of_ids(ids) for ids in parts], axis=1)
        return np.concatenate([terms, (dense @ self.dense_coefficients)[None]])

    def _terms_of_ids(self, ids: Int32[np.ndarray, "n C"]) -> Float32[np.ndarray, "2 n"]:
        terms = np.zeros((2, len(ids)), np.float32)
        vectors = {}
        for feature, (bag, effects) in enumerate(zip(self._bags(ids), self.effects, strict=True)):
            if self.bag_lengths[feature] == 1:
                index = effects.index(bag[:, 0].copy())  # which is read several times
                terms[1] += effects.main[index]
                if effects.vectors is not None:  # [index] takes 15 times as long
                    vectors[feature] = effects.vectors.take(index, axis=0)
                continue
            index = effects.index(bag)
            present = (bag != ABSENT).astype(np.float32)
            terms[1] += np.einsum("nl,nl->n", effects.main[index], present)
            if effects.vectors is not None:
                vectors[feature] = np.einsum("nlk,nl->nk", effects.vectors[index], present)
        for f, g in self.pairs:
            terms[0] += np.einsum("nk,nk->n", vectors[f], vectors[g])
        if self.history is not None:
            terms[0] += self.succession.of_order(self.affinities(ids))
        return terms

    def affinities(self, ids: Int32[np.ndarray, "n C"]) -> Float32[np.ndarray, "n L"]:
        """What each id of a sequential teacher's history says of the candidate; 0 if absent."""
        candidates = self._bags(ids)[self.candidate][:, 0]
        return self.succession.affinities(self.histories(ids), candidates)

    def histories(self, ids: Int32[np.ndarray, "n C"]) -> Int32[np.ndarray, "n L"]:
        """The columns of a sequential teacher's history, the latest id first."""
        assert self.history is not None
        return self._bags(ids)[self.history]

    def logits(
        self, dense: Float32[np.ndarray, "N D"], ids: Int32[np.ndarray, "N C"]
    ) -> Float32[np.ndarray, " N"]:
        """The log odds of label 1."""
        parts = (ids[part] for part in self._parts(len(ids)))
        return self.scales @ self._terms(dense, parts) + self.bias


def _history_and_candidate(
    table_rows: Sequence[int], bag_lengths: Sequence[int]
) -> tuple[int, int]:
    """The features of the history and the candidate: the first bag, and the id of as many rows.

    Raises:
        UserError: there are none.
    """
    places = range(len(table_rows))
    for history in (i for i in places if bag_lengths[i] > 1):
        for candidate in places:
            if bag_lengths[candidate] == 1 and table_rows[candidate] == table_rows[history]:
                return history, candidate
    raise UserError(
        f"teacher: sequential expects a history, a feature with several ids, and a candidate, one "
        f"of a single id with as many rows; got table_rows "
        f"{','.join(map(str, table_rows))} and bag_lengths {','.join(map(str, bag_lengths))}"
    )


def _skip(rng: np.random.Generator, numbers: int) -> None:
    """Goes on as if so many numbers of float64 had been drawn."""
    generator = rng.bit_generator
    assert isinstance(generator, np.random.PCG64)
    before = generator.state
    generator.advance(numbers)
    # Which drops the half of a number that is left of an integer; a float64 doesn't.
    after = generator.state
    after["has_uint32"], after["uinteger"] = before["has_uint32"], before["uinteger"]
    generator.state = after


def check_ranges(*ranges: tuple[str, float, float, float]) -> None:
    """Checks numbers that are given by name, value, smallest and largest allowed value.

    Raises:
        UserError: a number is out of its range.
    """
    for name, value, low, high in ranges:
        if not low <= value <= high:
            raise UserError(f"{name} must lie between {low} and {high}, got {value}.")


def sigmoid(x: Float32[np.ndarray, " N"]) -> Float32[np.ndarray, " N"]:
    """The logistic function, written so that it can't overflow."""
    return np.float32(0.5) + np.float32(0.5) * np.tanh(np.float32(0.5) * x)
