"""HSTU (arXiv 2402.17152) for ranking: candidates behind a history that is encoded once."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int32

from dlrm_jax.attention.attention_bias import Bias, time_bucket
from dlrm_jax.attention.jagged import Candidates, Sequences
from dlrm_jax.attention.pointwise_attention import pointwise_attention
from dlrm_jax.attention.pointwise_target_attention import pointwise_target_attention
from dlrm_jax.models.history_encoder import HistoryEncoder
from dlrm_jax.models.hstu import HSTU, HSTULayer


class Kept(NamedTuple):
    """What `HSTUCandidates` keeps of histories.

    Attributes:
        keys: keys of each unit, [T, H, a].
        values: values of each unit, [T, H, v].
        sequences: where the histories are.
    """

    keys: tuple[Float[Array, "T H a"], ...]
    values: tuple[Float[Array, "T H v"], ...]
    sequences: Sequences


class HSTUCandidates(HistoryEncoder):
    """`HSTU` over a history with one of the candidates behind it, for each of them.

    Tokens of the history attend to those up to themselves, so their keys and values serve all
    candidates: M-FALCON (section 3.4). A candidate attends to its history and to itself, at the
    place behind the history and at its own time.

    Args:
        width: width of the vectors, d.
        max_length: longest length that is expected; see `HSTU`.
        options: further options of `HSTU`.
        rngs: random number generators.

    Raises:
        UserError: as of `HSTU`.
    """

    def __init__(self, width: int, max_length: int, *, rngs: nnx.Rngs, **options: Any):
        self.hstu = HSTU(width, max_length, rngs=rngs, **options)

    def encode(self, history: Float[Array, "T d"], sequences: Sequences) -> Kept:
        """Returns keys and values of the tokens; see `HistoryEncoder`.

        Without `next_times` the last token of a history is followed by one at its own time.
        """
        self.hstu.check_times(sequences.times)
        if sequences.times is not None and sequences.next_times is None:
            following = jnp.minimum(jnp.arange(len(history)) + 1, sequences.lasts)
            sequences = sequences._replace(next_times=sequences.times[following])
        x, keys, values = self.hstu.positions(history, sequences), [], []
        for number, layer in enumerate(self.hstu.layers):
            u, value, query, key = layer.project(x)
            keys.append(key)
            values.append(value)
            if number + 1 < len(self.hstu.layers):  # the last unit's results are those of no key
                attended: Any = pointwise_attention(
                    query, key, value, layer.bias, sequences, layer.scale
                )
                x = layer.finish(x, u, attended, sequences)
        return Kept(tuple(keys), tuple(values), sequences)

    def score(
        self, kept: Kept, candidates: Float[Array, "N d"], of: Candidates
    ) -> Float[Array, "N d"]:
        """Returns a vector for each candidate; see `HistoryEncoder`."""
        self.hstu.check_times(of.times)
        x = self.hstu.positions.at(of.lengths, candidates, of)
        asked = _asked(kept.sequences, of)
        for layer, key, value in zip(self.hstu.layers, kept.keys, kept.values, strict=True):
            u, own_value, query, own_key = layer.project(x)
            bias = _bias_of_tokens(layer.bias, kept.sequences, asked)
            found: Array = pointwise_target_attention(
                _with(query, jnp.ones(len(query))), _with(key, bias), value, of, layer.scale
            )
            found = found + _own(layer, query, own_key, own_value)
            x = layer.finish(x, u, found, of)
        return x


def _with(x: Float[Array, "n H a"], further: Float[Array, " n"]) -> Float[Array, "n H b"]:
    """Vectors with one more number, the same for all heads: a bias, and 1 in what it meets."""
    repeated = jnp.broadcast_to(further[:, None, None], (*x.shape[:2], 1))
    return jnp.concatenate([x, repeated.astype(x.dtype)], axis=2)


def _asked(sequences: Sequences, of: Candidates) -> Int32[Array, " T"] | None:
    """The time of the candidates of each token's history, [T]; its own without candidates."""
    if of.times is None or sequences.times is None:
        return None
    size = len(sequences.starts)
    first = jnp.where(of.lengths > 0, of.firsts, size)
    at_firsts = sequences.times.at[first].set(of.times, mode="drop")
    return at_firsts[jnp.minimum(sequences.starts, size - 1)]


def _bias_of_tokens(
    bias: Bias, sequences: Sequences, asked: Int32[Array, " T"] | None
) -> Float[Array, " T"]:
    """The bias between a candidate and each token of its history, the same for all of its."""
    place = jnp.arange(len(sequences.starts), dtype=jnp.int32)
    distance = jnp.minimum(sequences.lasts + 1 - place, len(bias.by_distance) - 1)
    found = bias.by_distance[distance]
    if bias.by_time is None or asked is None or sequences.times is None:
        return found
    return found + bias.by_time[time_bucket(asked - sequences.times)]


def _own(layer: HSTULayer, query: Array, key: Array, value: Array) -> Float[Array, "N H v"]:
    """What each candidate finds in itself."""
    bias = layer.bias.by_distance[0]
    if layer.bias.by_time is not None:
        bias = bias + layer.bias.by_time[0]
    weights = layer.scale * jax.nn.silu(jnp.sum(query * key, axis=2) + bias)
    return weights[..., None].astype(value.dtype) * value
