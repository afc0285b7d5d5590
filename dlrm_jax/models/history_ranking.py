"""Ranking models of a target and a long history: encoders of `HistoryEncoder` in the zoo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.attention.block_pairs import BLOCK
from dlrm_jax.attention.jagged import Candidates, Sequences, sequences_of
from dlrm_jax.models.fields import (
    VECTOR,
    Field,
    Model,
    Read,
    Vectors,
    concatenated_width,
    hidden,
    split_histories,
)
from dlrm_jax.models.history_encoder import HistoryEncoder
from dlrm_jax.models.hstu_candidates import HSTUCandidates
from dlrm_jax.models.mlp import MLP, at_least_float32
from dlrm_jax.models.stca import STCA

Latest = Literal["first", "last"]
"""Place of the latest id in a history: the first one, or the last one that is present."""


class HistoryRanking(Model):
    """An MLP over dense features, vectors, and what each history says of a target.

    Args:
        name: name of the model, for messages.
        dense_features: number of dense features, D.
        fields: the categorical inputs; those with several ids are histories.
        top_mlp: widths of the MLP; the last is 1, the logit.
        target: name of the field that histories are asked about, which has one id.
        latest: place of the latest id of a history.
        make: function that makes the encoder of a history of a width and a longest length.
        rngs: random number generators of the initial values.
        dtype: type in which the MLP computes; encoders compute in that of the vectors.

    Raises:
        UserError: there is no history, or no such target of the same width.
    """

    @staticmethod
    def reads(field: Field) -> tuple[Read, ...]:
        """One vector, or a sequence of vectors for a field with several ids."""
        return (Read(sequence=True),) if field.max_ids > 1 else (VECTOR,)

    def __init__(
        self,
        name: str,
        dense_features: int,
        fields: Sequence[Field],
        top_mlp: Sequence[int],
        target: str,
        latest: Latest,
        make: Callable[[int, int], HistoryEncoder],
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        widths, histories = split_histories(name, fields, target)
        self.names, self.histories = tuple(widths), tuple(field.name for field in histories)
        self.target = target
        self.latest: Latest = latest
        self.encoders = nnx.Dict({x.name: make(x.width, x.max_ids) for x in histories})
        sizes = concatenated_width(dense_features, fields), *hidden(top_mlp), 1
        self.top = MLP(sizes, last_relu=False, rngs=rngs, dtype=dtype)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        with jax.named_scope("interaction"):
            found = [
                self.encoders[name](*in_sequences(vectors[name], self.latest, vectors[self.target]))
                for name in self.histories
            ]
        inputs = [dense, *(vectors[name] for name in self.names), *found]
        with jax.named_scope("top_mlp"):
            return at_least_float32(self.top(jnp.concatenate(inputs, axis=1))[:, 0])


def in_sequences(
    history: Float[Array, "B K d"], latest: Latest, candidates: Float[Array, "B d"]
) -> tuple[Float[Array, "T d"], Sequences, Float[Array, "B d"], Candidates]:
    """The inputs of a `HistoryEncoder`: B histories with a candidate each, the latest token last.

    Args:
        history: vectors of the ids; those of absent ids, all behind the others, are zero.
        latest: place of the latest id.
        candidates: vectors of the candidates.
    """
    count, places, width = history.shape
    present = jnp.any(history != 0, axis=2)
    # An id between others is there, though its vector be zero.
    lengths = jnp.max(jnp.where(present, jnp.arange(1, places + 1, dtype=jnp.int32), 0), axis=1)
    ends = jnp.cumsum(lengths, dtype=jnp.int32)
    sequences = sequences_of(lengths, -(-count * places // BLOCK) * BLOCK)
    row = jnp.arange(count, dtype=jnp.int32)
    owner = jnp.repeat(row, lengths, total_repeat_length=len(sequences.starts))
    place = sequences.positions
    if latest == "first":
        place = lengths[owner] - 1 - place
    source = jnp.where(sequences.present, owner * places + place, count * places)
    tokens = history.reshape(-1, width).at[source].get(mode="fill", fill_value=0)
    return tokens, sequences, candidates, Candidates(ends - lengths, ends)


class STCARanking(HistoryRanking):
    """`STCA` over histories (arXiv 2511.06077), and an MLP.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs; those with several ids are histories.
        top_mlp: widths of the MLP; the last is 1, the logit.
        target: name of the field that histories are asked about, which has one id.
        latest: place of the latest id: ``"first"``, as in MovieLens' histories, or ``"last"``.
        layers: number of layers.
        heads: number of heads of each layer, which divides the width of the vectors.
        hidden_width: width inside the SwiGLUs; 0 for twice that of the vectors.
        rngs: random number generators of the initial values.
        dtype: type in which the MLP computes.

    Raises:
        UserError: there is no history, or no such target of the same width, or a size doesn't fit.
    """

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        top_mlp: Sequence[int],
        *,
        target: str,
        latest: Latest = "first",
        layers: int = 2,
        heads: int = 1,
        hidden_width: int = 0,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        def make(width: int, length: int) -> STCA:
            sizes = {"layers": layers, "heads": heads, "hidden_width": hidden_width}
            return STCA(width, length, **sizes, timed=False, rngs=rngs)

        super().__init__(
            "stca", dense_features, fields, top_mlp, target, latest, make, rngs=rngs, dtype=dtype
        )


class HSTURanking(HistoryRanking):
    """`HSTU` over histories with the target behind each (arXiv 2402.17152), and an MLP.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs; those with several ids are histories.
        top_mlp: widths of the MLP; the last is 1, the logit.
        target: name of the field that histories are asked about, which has one id.
        latest: place of the latest id: ``"first"``, as in MovieLens' histories, or ``"last"``.
        layers: number of units.
        heads: number of heads of each unit.
        attention_width: width of a head's queries and keys; 0 for that of the vectors / heads.
        linear_width: width of a head's values and gates; 0 for that of the vectors / heads.
        rngs: random number generators of the initial values.
        dtype: type in which the MLP computes.

    Raises:
        UserError: there is no history, or no such target of the same width, or a size doesn't fit.
    """

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        top_mlp: Sequence[int],
        *,
        target: str,
        latest: Latest = "first",
        layers: int = 2,
        heads: int = 1,
        attention_width: int = 0,
        linear_width: int = 0,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        def make(width: int, length: int) -> HSTUCandidates:
            sizes = {"attention_width": attention_width, "linear_width": linear_width}
            counts = {"layers": layers, "heads": heads}
            return HSTUCandidates(
                width, length, **counts, **sizes, timed=False, dropout=0.0, rngs=rngs
            )

        super().__init__(
            "hstu", dense_features, fields, top_mlp, target, latest, make, rngs=rngs, dtype=dtype
        )
