"""STCA (arXiv 2511.06077), stacked attention of a target to a long history."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int32

from dlrm_jax.attention.attention_bias import TIME_BUCKETS, time_bucket
from dlrm_jax.attention.jagged import Candidates, Sequences
from dlrm_jax.attention.target_attention import target_attention
from dlrm_jax.errors import UserError
from dlrm_jax.models.history_encoder import HistoryEncoder
from dlrm_jax.models.sequence_encoder import TokenDropout, at_least_one, normalized

_EPSILON = 1e-6
_INIT = jax.nn.initializers.normal(0.02)


class Kept(NamedTuple):
    """What `STCA` keeps of histories.

    Attributes:
        keys: keys of each layer, [T, H, a].
        values: values of each layer, [T, H, a].
        times: time of each token, [T]; None without.
    """

    keys: tuple[Float[Array, "T H a"], ...]
    values: tuple[Float[Array, "T H a"], ...]
    times: Int32[Array, " T"] | None


class SwiGLU(nnx.Module):
    """norm(y + W₃ (SiLU(W₁ y) ∘ W₂ y)), where y = norm(x).

    The product of two linear layers is nearly the same for small x and -x. So the inputs are
    normalized, and added to what comes of them; the paper leaves both open.

    Args:
        width: width of the inputs and results, d.
        hidden_width: width of W₁'s and W₂'s results.
        rngs: random number generators.
    """

    def __init__(self, width: int, hidden_width: int, *, rngs: nnx.Rngs):
        self.gate = nnx.Linear(width, hidden_width, rngs=rngs)
        self.up = nnx.Linear(width, hidden_width, rngs=rngs)
        self.down = nnx.Linear(hidden_width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n d"]:
        """Returns the results."""
        y = normalized(x, _EPSILON)
        return normalized(y + self.down(jax.nn.silu(self.gate(y)) * self.up(y)), _EPSILON)


class STCALayer(nnx.Module):
    """Attention of fused queries to the history (section 3.2).

    The tokens of the history go through a SwiGLU of the layer's own, and no token attends to
    another. The query is the candidate with the results of the layers before, through a linear
    layer and a SwiGLU.

    Args:
        width: width of the vectors, d.
        number: number of the layer from 0 on, that of the results before it.
        heads: number of heads, which divides d.
        hidden_width: width inside the SwiGLUs.
        rngs: random number generators.
    """

    def __init__(self, width: int, number: int, heads: int, hidden_width: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.fusion = Fusion(width, number, hidden_width, rngs=rngs)
        self.history = SwiGLU(width, hidden_width, rngs=rngs)
        self.query, self.value, self.output = (
            nnx.Linear(width, width, rngs=rngs) for _ in range(3)
        )
        # A bias of keys would add the same to all scores of a query.
        self.key = nnx.Linear(width, width, use_bias=False, rngs=rngs)

    def keep(self, history: Float[Array, "T d"]) -> tuple[Array, Array]:
        """Keys and values of the tokens, [T, H, a] each."""
        x = self.history(history)
        return self._by_head(self.key(x)), self._by_head(self.value(x))

    def attend(
        self, found: list[Float[Array, "N d"]], key: Array, value: Array, of: Candidates
    ) -> Float[Array, "N d"]:
        """The result of a layer, given the candidates and the results of those before it."""
        query = self._by_head(self.query(self.fusion(found)))
        attended: Array = target_attention(query, key, value, of)
        return self.output(attended.reshape(len(query), -1))

    def _by_head(self, x: Float[Array, "n d"]) -> Float[Array, "n H a"]:
        return x.reshape(len(x), self.heads, -1)


class Fusion(nnx.Module):
    """SwiGLU(W [x, o₁, …, oₘ]): a candidate and what m layers have found, as one vector.

    Args:
        width: width of each vector, d.
        results: number of layers before, m; without any, there is no W.
        hidden_width: width inside the SwiGLU.
        rngs: random number generators.
    """

    def __init__(self, width: int, results: int, hidden_width: int, *, rngs: nnx.Rngs):
        if results:
            self.join = nnx.Linear((results + 1) * width, width, rngs=rngs)
        self.joins = bool(results)
        self.swiglu = SwiGLU(width, hidden_width, rngs=rngs)

    def __call__(self, found: list[Float[Array, "N d"]]) -> Float[Array, "N d"]:
        """Returns the fused vectors."""
        x = self.join(jnp.concatenate(found, axis=1)) if self.joins else found[0]
        return self.swiglu(x)


class STCA(HistoryEncoder):
    """Layers one after the other, whose results and the candidate are fused in the end.

    Time and memory are linear in the length of a history. As the paper leaves open how recency
    gets in, a token adds a learned vector for the number of places up to the history's end and,
    with times, one for the time up to the last token; a candidate adds one for the time since then.
    Buckets widen with the distance, so all of these hold for lengths that training hasn't seen.
    Norms have no parameters, since linear layers follow.

    Args:
        width: width of the vectors, d.
        max_length: longest length that is expected; tokens farther from the end have the vector
            of that distance.
        layers: number of layers.
        heads: number of heads of each layer, which divides d.
        hidden_width: width inside the SwiGLUs; 0 for 2 d.
        timed: whether there are vectors for times.
        dropout: share of the inputs' numbers that are left out in training.
        rngs: random number generators.

    Raises:
        UserError: a size is less than 1, the heads don't divide the width, or sequences or
            candidates have no times with ``timed``.
    """

    def __init__(
        self,
        width: int,
        max_length: int,
        *,
        layers: int = 2,
        heads: int = 1,
        hidden_width: int = 0,
        timed: bool = True,
        dropout: float = 0.0,
        rngs: nnx.Rngs,
    ):
        at_least_one(width=width, max_length=max_length, layers=layers, heads=heads)
        if width % heads:
            raise UserError(f"heads: expected a divisor of the width {width}, got {heads}")
        hidden = hidden_width or 2 * width
        self.max_length, self.timed = max_length, timed
        self.dropout = TokenDropout(dropout, rngs=rngs)
        buckets = TIME_BUCKETS + 1, width
        self.by_place = nnx.Param(_INIT(rngs.params(), buckets))
        if timed:
            self.by_time = nnx.Param(_INIT(rngs.params(), buckets))
            self.since_last = nnx.Param(_INIT(rngs.params(), buckets))
        self.layers = nnx.List(
            STCALayer(width, number, heads, hidden, rngs=rngs) for number in range(layers)
        )
        self.result = Fusion(width, layers, hidden, rngs=rngs)

    def encode(self, history: Float[Array, "T d"], sequences: Sequences) -> Kept:
        """Returns keys and values of the tokens; see `HistoryEncoder`."""
        last = sequences.lasts
        before = last - jnp.arange(len(last), dtype=jnp.int32)
        place = time_bucket(jnp.minimum(before + 1, self.max_length))
        x = history + self.by_place[...][place].astype(history.dtype)
        times = self._times(sequences.times)
        if times is not None:
            passed = time_bucket(times[last] - times)
            x = x + self.by_time[...][passed].astype(history.dtype)
        x = self.dropout.of_tokens(x, sequences)
        kept = [layer.keep(x) for layer in self.layers]
        return Kept(tuple(key for key, _ in kept), tuple(value for _, value in kept), times)

    def score(
        self, kept: Kept, candidates: Float[Array, "N d"], of: Candidates
    ) -> Float[Array, "N d"]:
        """Returns a vector for each candidate; see `HistoryEncoder`."""
        x, times = candidates, self._times(of.times)
        if times is not None and kept.times is not None:
            passed = time_bucket(times - kept.times[jnp.maximum(of.ends - 1, 0)])
            known = (of.lengths > 0)[:, None]
            x = x + jnp.where(known, self.since_last[...][passed], 0).astype(x.dtype)
        found = [self.dropout.of_tokens(x, of)]
        for layer, key, value in zip(self.layers, kept.keys, kept.values, strict=True):
            found.append(layer.attend(found, key, value, of))
        return self.result(found)

    def _times(self, times: Int32[Array, " n"] | None) -> Int32[Array, " n"] | None:
        if self.timed and times is None:
            raise UserError(
                "stca: expected sequences and candidates with times, got some without; give their "
                "times, or timed=False"
            )
        return times if self.timed else None
