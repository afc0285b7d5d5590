"""Scores of candidates outside of training: a history is encoded once, and serves all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32

from dlrm_jax.attention.block_pairs import BLOCK
from dlrm_jax.attention.jagged import Candidates, sequences_of
from dlrm_jax.errors import UserError
from dlrm_jax.precision import jit
from dlrm_jax.requests.columns import Columns
from dlrm_jax.requests.model import RequestRanker, feature
from dlrm_jax.requests.settings import RequestSettings
from dlrm_jax.training.learner import Learner, TrainState

_LEAST, _MOST = 16, 512
"""Candidates of the smallest call of the model, and of the largest one."""

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


class RequestScorer:
    """A trained model of requests on one device.

    Histories and candidates are filled up to one of few sizes, each twice the one before, so that
    a call compiles only when its size is new. Many candidates are scored some at a time.

    Args:
        columns: columns of the log.
        settings: settings of the run; the latest ``eval_length`` tokens of a history are read.
        model: trained model.
        tables: table of each name, [rows, d].
    """

    def __init__(
        self,
        columns: Columns,
        settings: RequestSettings,
        model: RequestRanker,
        tables: Mapping[str, Float[Array, "rows d"]],
    ):
        self.columns, self.settings, self.model = columns, settings, model
        self.tables = dict(tables)
        graph, self._state = nnx.split(model)

        def encode(state: Any, tables: Any, ids: Any, length: Any, times: Any) -> Any:
            vectors = _vectors(tables, "history", columns.history, ids)
            size = next(iter(ids.values())).size
            sequences = sequences_of(length, size, *((None, None) if times is None else times))
            return nnx.merge(graph, state).encode(vectors, sequences)

        def score(
            state: Any, tables: Any, kept: Any, ids: Any, context: Any, ends: Any, times: Any
        ) -> Float[Array, " N"]:
            vectors = _vectors(tables, "candidates", columns.candidates, ids)
            of_context = _vectors(tables, "context", columns.context, context)
            repeated = [
                jnp.broadcast_to(x[0], (len(ends), x.shape[2])) for x in of_context.values()
            ]
            candidates = Candidates(jnp.zeros_like(ends), ends, times)
            return nnx.merge(graph, state).score(kept, vectors, repeated, candidates)

        self._encode, self._score = jit(encode), jit(score)

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
        time: int | None = None,
    ) -> Encoded:
        """Encodes the history of a user, for as many calls of `score` as there are.

        Args:
            history: ids of each column, [n] each, the oldest first; negative for values that aren't
                known.
            times: time of each token in seconds, [n] integers, where the model has times.
            time: time of the request in seconds.

        Raises:
            UserError: columns are missing or unknown, lengths differ, ids are out of range, or
                times are missing or 68 years before the request.
        """
        ids, length = self._checked("history", self.columns.history, history)
        start = max(length - self.settings.evaluated_length, 0)
        room = _room(length - start, BLOCK)
        relative = None
        if not self.columns.is_timed and times is not None:
            raise UserError("times: expected none, as the model was trained without times")
        if self.columns.is_timed:
            if times is None or time is None:
                raise UserError(
                    "times: expected those of the history and of the request, as the model has "
                    "been trained with times; got none"
                )
            if len(times) != length:
                raise UserError(f"times: expected {length:,}, one a token, got {len(times):,}")
            own = _seconds(np.asarray(times, np.int64)[start:] - int(time))
            following = np.append(own[1:], np.zeros(min(len(own), 1), np.int32))
            relative = _filled(own, room, 0), _filled(following, room, 0)
        given = {name: _filled(x[start:], room, -1) for name, x in ids.items()}
        lengths = jnp.full(1, length - start, jnp.int32)
        kept = self._encode(self._state, self.tables, given, lengths, relative)
        return Encoded(kept, length - start, time if self.columns.is_timed else None)

    def score(
        self,
        encoded: Encoded,
        candidates: Ids,
        context: Mapping[str, int],
        time: int | None = None,
    ) -> Float32[np.ndarray, " m"]:
        """The logits of candidates, [m]; a larger one is of a candidate that is liked more.

        Args:
            encoded: result of `encode`.
            candidates: ids of each column, [m] each; negative for values that aren't known.
            context: id of each column of the request.
            time: time in seconds, where it isn't that of `encode` any more. The history isn't
                encoded again: to HSTU, the time of `encode` stays what follows its last token.

        Raises:
            UserError: columns are missing or unknown, lengths differ, or ids are out of range.
        """
        ids, count = self._checked("candidates", self.columns.candidates, candidates)
        single = {name: np.asarray([x]) for name, x in context.items()}
        of_context, _ = self._checked("context", self.columns.context, single)
        passed = None
        if encoded.time is not None:
            passed = _seconds(np.asarray([0 if time is None else int(time) - encoded.time]))
        found = np.zeros(count, np.float32)
        for first in range(0, count, _MOST):
            part = slice(first, min(first + _MOST, count))
            room = _room(part.stop - first, _LEAST)
            found[part] = self._score(
                self._state,
                self.tables,
                encoded.kept,
                {name: _filled(x[part], room, -1) for name, x in ids.items()},
                of_context,
                jnp.full(room, encoded.length, jnp.int32),
                None if passed is None else jnp.full(room, passed[0]),
            )[: part.stop - first]
        return found

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


def _room(count: int, least: int) -> int:
    """The size that so many are filled up to."""
    while least < count:
        least *= 2
    return least


def _filled(x: np.ndarray, room: int, value: int) -> Int32[Array, " n"]:
    padded = np.pad(x, (0, room - len(x)), constant_values=value)
    return jnp.asarray(padded.astype(np.int32))


def _seconds(x: np.ndarray) -> Int32[np.ndarray, " n"]:
    """Seconds from the request on.

    Raises:
        UserError: they are more than 2^31, 68 years.
    """
    if len(x) and np.abs(x).max() >= 2**31:
        raise UserError(
            f"times: expected seconds less than 68 years from the request's, got some that are "
            f"{np.abs(x).max():,} from it; give them in seconds"
        )
    return x.astype(np.int32)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
