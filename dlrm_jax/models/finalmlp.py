"""FinalMLP (arXiv 2304.00902): two gated MLPs and a bilinear fusion of them."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.errors import UserError
from dlrm_jax.models.fields import (
    Field,
    Model,
    Vectors,
    check_divides,
    check_share,
    concatenated,
    concatenated_width,
    hidden,
)
from dlrm_jax.models.mlp import MLP, Normalization, at_least_float32


class FeatureGate(nnx.Module):
    """2 σ(gate(x)) for each number of an MLP's input: stream-specific feature selection.

    x are the vectors of some fields, or a learned vector, the same for all examples.

    Args:
        context: fields whose vectors are x; empty for the learned vector.
        widths: width of the learned vector, then of the gate's layers; the last is that of the
            input.
        rngs: random number generators of the initial values.
        dtype: type in which the gate computes.
    """

    def __init__(
        self,
        context: Sequence[Field],
        widths: Sequence[int],
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        self.context = tuple(field.name for field in context)
        if not context:
            self.learned = nnx.Param(jnp.zeros((1, widths[0])))
        inputs = sum(field.width for field in context) or widths[0]
        layers = (inputs, *widths[1:])
        self.gate = MLP(layers, last_relu=False, rngs=rngs, dtype=dtype, plain=True)

    def __call__(self, vectors: Vectors) -> Float[Array, "_ W"]:
        """Returns the factors, [B, W], or [1, W] for all examples."""
        if self.context:
            x = jnp.concatenate([vectors[name] for name in self.context], axis=1)
        else:
            x = self.learned[...]
        return 2 * jax.nn.sigmoid(at_least_float32(self.gate(x)))


class Fusion(nnx.Module):
    """b + w₁ᵀ o₁ + w₂ᵀ o₂ + Σₕ o₁ₕᵀ Wₕ o₂ₕ, over parts of both, the heads.

    The paper's stream-level interaction aggregation.

    Args:
        widths: widths of o₁ and o₂.
        heads: number of heads, H, which divides both.
        rngs: random number generators of the initial values.
    """

    def __init__(self, widths: tuple[int, int], heads: int, *, rngs: nnx.Rngs):
        init = jax.nn.initializers.glorot_normal()
        self.heads = heads
        self.linear = MLP((sum(widths), 1), last_relu=False, rngs=rngs)
        shape = (heads * (widths[0] // heads), widths[1] // heads)
        self.weight = nnx.Param(init(rngs.params(), shape))

    def __call__(self, one: Float[Array, "B m"], other: Float[Array, "B n"]) -> Float[Array, " B"]:
        """Returns one number per example."""
        linear = self.linear(jnp.concatenate([one, other], axis=1))[:, 0]
        x = one.reshape(one.shape[0], self.heads, -1)
        y = other.reshape(other.shape[0], self.heads, -1)
        weight = self.weight[...].reshape(self.heads, x.shape[2], y.shape[2])
        return linear + jnp.einsum("bhi,hij,bhj->b", x, weight, y)


class FinalMLP(Model):
    """Two MLPs on gated inputs, and their bilinear fusion to a logit.

    A gate's context reads the vectors that the MLPs read; in FuxiCTR it has tables of its own.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs.
        top_mlp: widths of the first MLP; the last is 1, the logit.
        second_mlp: widths of the second MLP, without the logit; None for those of the first.
        heads: number of heads of the fusion, which divides the last widths of both.
        gating: whether the inputs are gated.
        gate_mlp: hidden widths of the gates.
        context_1: names of the fields that the first gate reads, joined by ``+``; ``*`` stands for
            any text; empty for a learned vector.
        context_2: the same of the second gate.
        dropout: share of the hidden outputs of the MLPs that is dropped in training.
        second_dropout: the same of the second MLP; None for as much.
        normalization: normalization of the hidden layers of both.
        rngs: random number generators of the initial values.
        dtype: type in which the MLPs compute; the fusion stays in at least float32.

    Raises:
        UserError: the heads don't divide the widths, a share is out of range, no field has such a
            name, or an option of gates is given without them.
    """

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        top_mlp: Sequence[int],
        *,
        second_mlp: tuple[int, ...] | None = None,
        heads: int = 1,
        gating: bool = True,
        gate_mlp: tuple[int, ...] = (64,),
        context_1: str = "",
        context_2: str = "",
        dropout: float = 0.0,
        second_dropout: float | None = None,
        normalization: Normalization = "none",
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        width = concatenated_width(dense_features, fields)
        first = hidden(top_mlp)
        second = first if second_mlp is None else second_mlp
        shares = (dropout, dropout if second_dropout is None else second_dropout)
        check_share(second_dropout=shares[1])
        ends = ((width, *first)[-1], (width, *second)[-1])
        check_divides("heads", heads, "the first MLP's last width", ends[0])
        check_divides("heads", heads, "the second MLP's last width", ends[1])
        if not gating and (gate_mlp, context_1, context_2) != ((64,), "", ""):
            raise UserError(
                "model_options: gate_mlp, context_1 and context_2 have no effect with "
                "gating=false; leave them out, or give gating=true"
            )
        contexts = [
            _named(fields, name, text)
            for name, text in (("context_1", context_1), ("context_2", context_2))
        ]
        self.fields = tuple(fields)
        self.streams = nnx.List(
            MLP((width, *widths), last_relu=True, rngs=rngs, dtype=dtype)
            for widths in (first, second)
        )
        for stream, share in zip(self.streams, shares, strict=True):
            stream.regularize(share, normalization, rngs)
        if gating:
            layers = (fields[0].width, *gate_mlp, width)
            self.gates = nnx.List(
                FeatureGate(context, layers, rngs=rngs, dtype=dtype) for context in contexts
            )
        self.fusion = Fusion(ends, heads, rngs=rngs)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        x = concatenated(dense, vectors, self.fields)
        inputs = [x, x]
        if hasattr(self, "gates"):
            with jax.named_scope("gates"):
                inputs = [gate(vectors) * x for gate in self.gates]
        with jax.named_scope("top_mlp"):
            one, other = (
                at_least_float32(stream(x)) for stream, x in zip(self.streams, inputs, strict=True)
            )
        with jax.named_scope("interaction"):
            return self.fusion(one, other)


def _named(fields: Sequence[Field], option: str, text: str) -> list[Field]:
    """The fields that an option names, in their own order."""
    patterns = text.split("+") if text else []
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(field.name, pattern) for field in fields):
            known = ", ".join(field.name for field in fields)
            raise UserError(
                f"model_options: {option}: expected names of fields, joined by +, of {known}; got "
                f"{pattern!r}"
            )
    return [x for x in fields if any(fnmatch.fnmatchcase(x.name, each) for each in patterns)]
