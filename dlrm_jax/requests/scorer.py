"""Scores of candidates outside of training: a history is encoded once, and serves all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32

from dlrm_jax.errors import UserError
from dlrm_jax.requests.columns import Columns
from dlrm_jax.requests.model import RequestRanker
from dlrm_jax.requests.scoring_program import Asked, Histories, ScoringProgram, Sizes
from dlrm_jax.requests.settings import RequestSettings
from dlrm_jax.sequential.history_times import second_of, seconds_before, seconds_of
from dlrm_jax.training.learner import Learner, TrainState

Ids = Mapping[str, Any]
"""Integers of each column, [n] each: arrays or lists."""


class Encoded(NamedTuple):
    """A history that was encoded.

    Attributes:
        kept: arrays that the encoder keeps of it, on the device.
        length: number of its tokens.
        time: time of the request, in seconds; None without times.
    """

    kept: Any
    length: int
    time: int | None


@dataclasses.dataclass(frozen=True)
class CheckedRequest:
    """A request that the model takes.

    Attributes:
        history: the tokens that are read.
        candidates: ids of each column of its candidates, [m].
        context: id of each column.
        count: number of candidates, m.
    """

    history: Histories
    candidates: Mapping[str, Int32[np.ndarray, " m"]]
    context: Mapping[str, Int32[np.ndarray, " 1"]]
    count: int

    def __len__(self) -> int:
        return self.count

    @property
    def tokens(self) -> int:
        """The number of tokens that are read."""
        return len(self.history.starts)


class RequestScorer:
    """A trained model of requests on one device.

    Histories and candidates are filled up to one of few sizes, so that a call compiles only when
    its size is new. Many candidates are scored some at a time.

    Args:
        columns: columns of the log.
        settings: settings of the run; the latest ``eval_length`` tokens of a history are read.
        model: trained model.
        tables: table of each name, [rows, d].
        sizes: sizes of calls; None for those up to the longest history and 1,024 candidates.
    """

    def __init__(
        self,
        columns: Columns,
        settings: RequestSettings,
        model: RequestRanker,
        tables: Mapping[str, Float[Array, "rows d"]],
        sizes: Sizes | None = None,
    ):
        self.columns, self.settings, self.model = columns, settings, model
        self.tables = dict(tables)
        sizes = sizes or Sizes.of(settings.evaluated_length)
        self.program = ScoringProgram(columns, model, tables, sizes)

    @classmethod
    def of_state(
        cls, learner: Learner, columns: Columns, settings: RequestSettings, state: TrainState
    ) -> RequestScorer:
        """The scorer of a train state, on any mesh.

        Args:
            learner: learner of `model.learner_for`.
            columns: columns of the log.
            settings: settings of the run.
            state: state, such as that of the best checkpoint.
        """
        arrays = learner.collection.iter_arrays(state.embedding)
        tables = {table.name: np.asarray(x) for table, name, x in arrays if name == "table"}
        model: Any = learner.model(state.params, state.model_state)
        graph, own = nnx.split(model)
        own = jax.tree.map(lambda x: x if _is_key(x) else jnp.asarray(np.asarray(x)), own)
        return cls(columns, settings, nnx.merge(graph, own), jax.tree.map(jnp.asarray, tables))

    def encode(
        self,
        history: Ids,
        times: Any = None,
        time: Any = None,
    ) -> Encoded:
        """Encodes the history of a user, for as many calls of `score` as there are.

        Args:
            history: ids of each column, [n] each, the oldest first; negative for values that aren't
                known.
            times: time of each token, [n] integers of seconds or dates, where the model has times.
            time: time of the request.

        Raises:
            UserError: columns are missing or unknown, lengths differ, ids are out of range, or
                times are missing, after the request, or 68 years before it.
        """
        own = self._history(history, times, time)
        kept = self.program.encode([own])
        moment = second_of("time", time) if self.columns.is_timed else None
        return Encoded(kept, len(own.starts), moment)

    def score(
        self,
        encoded: Encoded,
        candidates: Ids,
        context: Mapping[str, Any],
        time: Any = None,
    ) -> Float32[np.ndarray, " m"]:
        """The logits of candidates, [m]; a larger one is of a candidate that is liked more.

        Args:
            encoded: result of `encode`.
            candidates: ids of each column, [m] each; negative for values that aren't known.
            context: id of each column of the request.
            time: time, where it is later than that of `encode`. The history isn't
                encoded again: to HSTU, the time of `encode` stays what follows its last token.

        Raises:
            UserError: columns are missing or unknown, lengths differ, ids are out of range, or the
                time is before that of `encode`.
        """
        passed = None
        if encoded.time is not None:
            passed = 0
            if time is not None:
                passed = second_of("time", time) - encoded.time
            if not 0 <= passed < 2**31:
                raise UserError(
                    f"time: expected that of encode, or less than 68 years later, got one "
                    f"{passed:,} seconds later"
                )
        ids, of_context, count = self._candidates(candidates, context)
        asked = Asked(
            ids,
            {name: np.repeat(x, count) for name, x in of_context.items()},
            np.zeros(count, np.int32),
            np.full(count, encoded.length, np.int32),
            None if passed is None else np.full(count, passed, np.int32),
        )
        return self.program.score(encoded.kept, asked)

    def checked(
        self,
        history: Ids,
        candidates: Ids,
        context: Mapping[str, Any],
        times: Any = None,
        time: Any = None,
    ) -> CheckedRequest:
        """A request for `score_all`; arguments and errors are those of `encode` and `score`."""
        own = self._history(history, times, time)
        return CheckedRequest(own, *self._candidates(candidates, context))

    def score_all(self, requests: Sequence[CheckedRequest]) -> list[Float32[np.ndarray, " m"]]:
        """The logits of the candidates of each request.

        Requests are packed while their histories fit into the largest size. The logits of a request
        alone are those of `encode` and `score` to the last bit; in a pack, sums have another order.

        Args:
            requests: results of `checked`.
        """
        packs: list[list[CheckedRequest]] = []
        room = 0
        for request in requests:
            if not packs or request.tokens > room:
                packs.append([])
                room = self.program.sizes.tokens[-1]
            packs[-1].append(request)
            room -= request.tokens
        return [logits for pack in packs for logits in self._score_pack(pack)]

    def _score_pack(self, pack: Sequence[CheckedRequest]) -> list[np.ndarray]:
        kept = self.program.encode([x.history for x in pack])
        lengths, counts = np.asarray([(x.tokens, x.count) for x in pack]).T
        ends = np.where(lengths, np.cumsum(lengths), 0)
        asked = Asked(
            {x: np.concatenate([y.candidates[x] for y in pack]) for x in self.columns.candidates},
            {
                x: np.repeat(np.concatenate([y.context[x] for y in pack]), counts)
                for x in self.columns.context
            },
            np.repeat(ends - lengths, counts),
            np.repeat(ends, counts),
            np.zeros(counts.sum(), np.int32) if self.columns.is_timed else None,
        )
        return np.split(self.program.score(kept, asked), np.cumsum(counts)[:-1])

    def _history(self, history: Ids, times: Any, time: Any) -> Histories:
        """The tokens that are read of a history, without filling."""
        ids, length = self._checked("history", self.columns.history, history)
        start = max(length - self.settings.evaluated_length, 0)
        own = following = None
        if not self.columns.is_timed and times is not None:
            raise UserError("times: expected none, as the model was trained without times")
        if self.columns.is_timed:
            if times is None or time is None:
                raise UserError(
                    "times: expected those of the history and of the request, as the model has "
                    "been trained with times; got none"
                )
            seconds = seconds_of("times", times)
            if len(seconds) != length:
                raise UserError(f"times: expected {length:,}, one a token, got {len(seconds):,}")
            own = seconds_before(seconds, second_of("time", time))[start:]
            following = np.append(own[1:], np.zeros(min(len(own), 1), np.int32))
        read = {name: x[start:] for name, x in ids.items()}
        return Histories(read, np.zeros(length - start, np.int32), own, following)

    def _candidates(
        self, candidates: Ids, context: Mapping[str, Any]
    ) -> tuple[dict[str, Int32[np.ndarray, " m"]], dict[str, Int32[np.ndarray, " 1"]], int]:
        """The ids of candidates and of the context, and the number of candidates."""
        ids, count = self._checked("candidates", self.columns.candidates, candidates)
        single = {name: np.asarray([x]) for name, x in context.items()}
        of_context, _ = self._checked("context", self.columns.context, single)
        return ids, of_context, count

    def _checked(
        self, part: str, tables: Mapping[str, str], ids: Ids
    ) -> tuple[dict[str, Int32[np.ndarray, " n"]], int]:
        """The ids of a part as int32, and how many they are."""
        if set(ids) != set(tables):
            raise UserError(
                f"{part}: expected the columns {', '.join(sorted(tables)) or 'none'}, got "
                f"{', '.join(sorted(ids)) or 'none'}"
            )
        found = {}
        for name, table in tables.items():
            own, rows = np.asarray(ids[name]), len(self.tables[table])
            if own.ndim != 1 or (own.size and own.dtype.kind not in "iu"):
                raise UserError(
                    f"{part}: expected a list of integers in {name!r}, got {own.dtype} of shape "
                    f"{own.shape}"
                )
            if own.size and own.max() >= rows:
                raise UserError(
                    f"{part}: expected ids below {rows:,}, the rows of table {table!r}, in "
                    f"{name!r}, got {own.max():,}"
                )
            found[name] = np.maximum(own.astype(np.int64), -1).astype(np.int32)
        lengths = {name: len(x) for name, x in found.items()}
        if len(set(lengths.values())) > 1:
            text = ", ".join(f"{x:,} of {name!r}" for name, x in lengths.items())
            raise UserError(f"{part}: expected as many ids in all columns, got {text}")
        return found, next(iter(lengths.values()), 0)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
