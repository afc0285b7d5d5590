"""The compiled functions of a trained model of requests, in a few sizes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32

from dlrm_jax.attention.block_pairs import BLOCK
from dlrm_jax.attention.jagged import Candidates, Sequences
from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.precision import jit
from dlrm_jax.requests.columns import Columns
from dlrm_jax.requests.model import RequestRanker, feature

_STEP = 4  # from a size to the next: each one is a program to compile
_LEAST = 2 * BLOCK, 64
CANDIDATES = 1024
"""Most candidates of a call of the model."""


class Sizes(NamedTuple):
    """The numbers of tokens and of candidates that calls are filled up to, ascending.

    Filling costs little: attention passes over it.

    Attributes:
        tokens: sizes of packed histories.
        candidates: sizes of their candidates.
    """

    tokens: tuple[int, ...]
    candidates: tuple[int, ...]

    @classmethod
    def of(cls, longest: int, tokens: int = 0, candidates: int = CANDIDATES) -> Sizes:
        """The sizes up to some numbers.

        Args:
            longest: longest history that is read.
            tokens: most tokens of histories that are packed together, if that is more.
            candidates: most candidates of a call.
        """
        return cls(_ladder(max(longest, tokens, BLOCK), _LEAST[0]), _ladder(candidates, _LEAST[1]))


class Histories(NamedTuple):
    """Packed histories.

    Attributes:
        ids: ids of each column, [T].
        starts: place of the first token of each token's history, [T]; T for filling.
        times: time of each token from its request's on, [T] seconds; None without times.
        next_times: time of the token that follows, or of the request, [T]; or None.
    """

    ids: Mapping[str, Any]
    starts: Any
    times: Any
    next_times: Any

    @classmethod
    def packed(cls, histories: Sequence[Histories], sizes: Sequence[int]) -> Histories:
        """Histories one behind the other, each of which has its own tokens alone.

        Args:
            histories: histories, whose `starts` aren't read.
            sizes: sizes to choose from.
        """
        lengths = [len(x.starts) for x in histories]
        room = _room(sum(lengths), sizes)
        ends = np.cumsum(lengths)

        def joined(arrays: list[Any], value: int) -> np.ndarray:
            return _filled(np.concatenate(arrays), room, value)

        return cls(
            {x: joined([y.ids[x] for y in histories], ABSENT) for x in histories[0].ids},
            _filled(np.repeat(ends - lengths, lengths), room, room),
            *(
                None if arrays[0] is None else joined(arrays, 0)
                for arrays in ([x.times for x in histories], [x.next_times for x in histories])
            ),
        )


class Asked(NamedTuple):
    """Candidates of packed histories.

    Attributes:
        ids: ids of each column of the candidates, [N].
        context: ids of each column of their requests, [N].
        firsts: place of the first token of each one's history, [N]; 0 if it is empty.
        ends: place behind the last one, [N]; 0 if it is empty.
        times: time of each one, [N], as those of the tokens; None without times.
    """

    ids: Mapping[str, Any]
    context: Mapping[str, Any]
    firsts: Any
    ends: Any
    times: Any

    def part(self, part: slice, sizes: Sequence[int]) -> Asked:
        """Some of the candidates, filled up to one of the sizes."""
        room = _room(len(self.firsts[part]), sizes)

        def filled(x: Any, value: int) -> np.ndarray:
            return _filled(x[part], room, value)

        return Asked(
            {name: filled(x, ABSENT) for name, x in self.ids.items()},
            {name: filled(x, ABSENT) for name, x in self.context.items()},
            filled(self.firsts, 0),
            filled(self.ends, 0),
            None if self.times is None else filled(self.times, 0),
        )


class ScoringProgram:
    """A model as two functions of packed requests, each compiled for a few sizes.

    Args:
        columns: columns of the log.
        model: trained model.
        tables: table of each name, [rows, d].
        sizes: sizes of calls.
    """

    def __init__(
        self,
        columns: Columns,
        model: RequestRanker,
        tables: Mapping[str, Float[Array, "rows d"]],
        sizes: Sizes,
    ):
        self.sizes, self._columns, self._tables = sizes, columns, dict(tables)
        graph, self._state = nnx.split(model)

        def encode(state: Any, tables: Any, packed: Histories) -> Any:
            vectors = _vectors(tables, "history", columns.history, packed.ids)
            sequences = Sequences(packed.starts, packed.times, packed.next_times)
            return nnx.merge(graph, state).encode(vectors, sequences)

        def score(state: Any, tables: Any, kept: Any, asked: Asked) -> Float[Array, " N"]:
            vectors = _vectors(tables, "candidates", columns.candidates, asked.ids)
            context = _vectors(tables, "context", columns.context, asked.context)
            candidates = Candidates(asked.firsts, asked.ends, asked.times)
            own = [x[0] for x in context.values()]
            return nnx.merge(graph, state).score(kept, vectors, own, candidates)

        self._encode, self._score = jit(encode), jit(score)

    def encode(self, histories: Sequence[Histories]) -> Any:
        """What the encoder keeps of histories, packed one behind the other.

        Args:
            histories: histories of no more tokens than the largest size, at least one.
        """
        packed = Histories.packed(histories, self.sizes.tokens)
        return self._encode(self._state, self._tables, packed)

    def score(self, kept: Any, asked: Asked) -> Float32[np.ndarray, " N"]:
        """The logits of candidates, of which any number is scored, some at a time.

        Args:
            kept: result of `encode`.
            asked: candidates of its histories.
        """
        most = self.sizes.candidates[-1]
        found = np.zeros(len(asked.firsts), np.float32)
        for first in range(0, len(found), most):
            part = slice(first, min(first + most, len(found)))
            own = asked.part(part, self.sizes.candidates)
            logits = self._score(self._state, self._tables, kept, own)
            found[part] = np.asarray(logits)[: part.stop - first]
        return found

    def warm_up(self) -> None:
        """Compiles all sizes."""
        none, columns = np.zeros(0, np.int32), self._columns
        times = none if columns.is_timed else None
        empty = Histories(dict.fromkeys(columns.history, none), none, times, times)
        candidates, context = (
            dict.fromkeys(names, none) for names in (columns.candidates, columns.context)
        )
        asked = Asked(candidates, context, none, none, times)

        def encode(size: int) -> Any:
            return self._encode(self._state, self._tables, Histories.packed([empty], [size]))

        def score(kept: Any, size: int) -> Any:
            own = asked.part(slice(0), [size])
            return jax.block_until_ready(self._score(self._state, self._tables, kept, own))

        # XLA compiles one program in one thread; the largest take longest.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            kept = [*pool.map(encode, reversed(self.sizes.tokens))]
            pairs = [(x, size) for x in kept for size in reversed(self.sizes.candidates)]
            for _ in pool.map(lambda x: score(*x), pairs):
                pass


def _vectors(
    tables: Mapping[str, Float[Array, "rows d"]],
    part: str,
    names: Mapping[str, str],
    ids: Mapping[str, Int32[Array, " n"]],
) -> dict[str, Float[Array, "1 n d"]]:
    """The vectors of each column's feature; zeros for ids that aren't known."""
    found = {}
    for name, table in names.items():
        rows = tables[table][jnp.maximum(ids[name], 0)]
        found[feature(part, name)] = jnp.where(ids[name][:, None] >= 0, rows, 0)[None]
    return found


def _ladder(most: int, least: int) -> tuple[int, ...]:
    """Powers of two up to one that `most` fits into; the first one is `least` at least."""
    sizes = [1 << (most - 1).bit_length()]
    while sizes[-1] // _STEP >= least:
        sizes.append(sizes[-1] // _STEP)
    return tuple(reversed(sizes))


def _room(count: int, sizes: Sequence[int]) -> int:
    """The least of the sizes that has room."""
    return next(size for size in sizes if size >= count)


def _filled(x: np.ndarray, room: int, value: int) -> Int32[np.ndarray, " n"]:
    return np.pad(x, (0, room - len(x)), constant_values=value).astype(np.int32)
