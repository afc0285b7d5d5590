"""Requests: the history of a user, the candidates that were shown, and what came of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import xxhash
from jaxtyping import Float32, Int32, Int64

from dlrm_jax.errors import UserError
from dlrm_jax.requests.columns import Columns


@dataclasses.dataclass(frozen=True)
class Requests:
    """R requests with T tokens of histories and N candidates. Arrays may be memory maps.

    Attributes:
        columns: columns that they come from.
        rows: number of rows of each table.
        history: ids of each column, those of a request side by side, the oldest first, [T] each.
        history_offsets: place of the first token of each request, and T behind, [R + 1].
        history_times: time of each token in seconds, [T]; None without.
        candidates: ids of each column, [N] each.
        candidate_offsets: place of the first candidate of each request, and N behind, [R + 1].
        labels: 0 or 1 for each candidate, [N].
        context: ids of each column, [R] each.
        times: time of each request in seconds, [R]; None without.
    """

    columns: Columns
    rows: Mapping[str, int]
    history: Mapping[str, Int32[np.ndarray, " T"]]
    history_offsets: Int64[np.ndarray, " R1"]
    history_times: Int64[np.ndarray, " T"] | None
    candidates: Mapping[str, Int32[np.ndarray, " N"]]
    candidate_offsets: Int64[np.ndarray, " R1"]
    labels: Float32[np.ndarray, " N"]
    context: Mapping[str, Int32[np.ndarray, " R"]]
    times: Int64[np.ndarray, " R"] | None

    def __len__(self) -> int:
        return len(self.history_offsets) - 1

    @property
    def lengths(self) -> Int64[np.ndarray, " R"]:
        """The number of tokens of each history, [R]."""
        return np.diff(self.history_offsets)

    @property
    def counts(self) -> Int64[np.ndarray, " R"]:
        """The number of candidates of each request, [R]."""
        return np.diff(self.candidate_offsets)

    def candidates_of(self, requests: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " m"]:
        """The places of the candidates of some requests, one request after the other."""
        return spans(self.candidate_offsets[:-1][requests], self.counts[requests])

    def fingerprint(self, split: Split) -> str:
        """A checksum of all that a run reads.

        Args:
            split: split of the requests.
        """
        sums = xxhash.xxh3_128()
        named = {f"history {x}": y for x, y in self.history.items()}
        named |= {f"candidates {x}": y for x, y in self.candidates.items()}
        named |= {f"context {x}": y for x, y in self.context.items()}
        named |= {"lengths": self.lengths, "counts": self.counts, "labels": self.labels}
        named |= split._asdict()
        if self.history_times is not None:
            named["history times"] = self.history_times
        if self.times is not None:
            named["times"] = self.times
        for name, array in named.items():
            sums.update(f"{name} {array.dtype} {array.shape}".encode())
            sums.update(np.ascontiguousarray(array).view(np.uint8).data)
        return sums.hexdigest()


class Split(NamedTuple):
    """Requests to train on, and to evaluate.

    Attributes:
        train: numbers of the requests that are trained on.
        validation: numbers of the requests by which a checkpoint is chosen.
        test: numbers of the requests of the results.
    """

    train: Int64[np.ndarray, " a"]
    validation: Int64[np.ndarray, " b"]
    test: Int64[np.ndarray, " c"]


def cuts_of(times: Int64[np.ndarray, " R"]) -> tuple[int, int]:
    """The times at which validation and test begin: behind 8 and 9 tenths of the requests.

    Args:
        times: time of each request, or its number.

    Raises:
        UserError: a part would be empty.
    """
    ordered = np.sort(times)
    first, second = (int(ordered[len(ordered) * tenths // 10]) for tenths in (8, 9))
    if not ordered[0] < first < second:
        raise UserError(
            f"expected a log whose times can be cut into eight tenths to train on and two more, "
            f"got {len(times):,} requests of {len(np.unique(times)):,} times; give a longer log"
        )
    return first, second


def split_of(times: Int64[np.ndarray, " R"]) -> Split:
    """Splits requests by time: eight tenths to train on, one for validation, the last for test.

    Args:
        times: time of each request, or its number.

    Raises:
        UserError: a part would be empty.
    """
    first, second = cuts_of(times)
    part = (times >= first).astype(np.int64) + (times >= second)
    return Split(*(np.flatnonzero(part == number) for number in range(3)))


def spans(firsts: Int64[np.ndarray, " n"], counts: Int64[np.ndarray, " n"]) -> np.ndarray:
    """The numbers ``firsts[i]`` to ``firsts[i] + counts[i] - 1`` for each i, one after another."""
    inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(firsts, counts) + inside
