"""MaskNet (arXiv 2102.07619): products with masks that the example itself gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.errors import UserError
from dlrm_jax.models.fields import (
    Field,
    FieldVectors,
    Model,
    Vectors,
    check_positive,
    common_width,
    hidden,
)
from dlrm_jax.models.mlp import MLP, at_least_float32
from dlrm_jax.models.tokens import TokenNorm


class MaskBlock(nnx.Module):
    """ReLU(LN(W (mask ∘ h))) with mask = W₂ ReLU(W₁ v + b₁) + b₂.

    The paper's MaskBlock with its instance-guided mask. Dropout, and another normalization instead
    of this one, are those of the config, see `MLP.regularize`. Unlike the paper's, W has a bias.

    Args:
        inputs: width of v, all vectors side by side.
        width: width of h.
        out: width of the result.
        ratio: width of the mask's hidden layer, as a multiple of the mask's.
        rngs: random number generators of the initial values.
        dtype: type in which the layers compute.
    """

    def __init__(
        self, inputs: int, width: int, out: int, ratio: float, *, rngs: nnx.Rngs, dtype: DTypeLike
    ):
        between = max(1, int(width * ratio))
        widths = (inputs, between, width)
        self.mask = MLP(widths, last_relu=False, rngs=rngs, dtype=dtype, plain=True)
        self.layer = MLP((width, out), last_relu=True, rngs=rngs, dtype=dtype)
        self.layer.regularize(0, "layer", rngs)

    def __call__(self, v: Float[Array, "B W"], h: Float[Array, "B in"]) -> Float[Array, "B out"]:
        """Masks h as v says, and transforms it."""
        mask = at_least_float32(self.mask(v))
        return at_least_float32(self.layer(mask * h))


class MaskNet(Model):
    """Mask blocks one after the other (SerMaskNet), or side by side under an MLP (ParaMaskNet).

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs, all of one width d.
        top_mlp: widths of the blocks if they are serial, otherwise of the MLP on them; the last is
            1, the logit.
        structure: ``"serial"`` or ``"parallel"`` blocks.
        blocks: number of parallel blocks; None for 3. Serial ones have no such option.
        block_width: width of the result of a parallel block; None for 64.
        mask_ratio: width of a mask's hidden layer, as a multiple of the mask's.
        vector_norm: whether the first blocks read normalized vectors.
        rngs: random number generators of the initial values.
        dtype: type in which the layers compute; products with masks stay in at least float32.

    Raises:
        UserError: there are no blocks, a width isn't positive, or an option is one of the other
            structure.
    """

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        top_mlp: Sequence[int],
        *,
        structure: Literal["serial", "parallel"] = "serial",
        blocks: int | None = None,
        block_width: int | None = None,
        mask_ratio: float = 2.0,
        vector_norm: bool = True,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        if structure == "serial" and (blocks, block_width) != (None, None):
            raise UserError(
                "model_options: blocks and block_width have no effect with structure=serial, whose "
                "blocks are those of top_mlp; leave them out, or give structure=parallel"
            )
        blocks = 3 if blocks is None else blocks
        block_width = 64 if block_width is None else block_width
        check_positive(blocks=blocks, block_width=block_width)
        if not 0 < mask_ratio < float("inf"):
            raise UserError(
                f"model_options: mask_ratio: expected a finite number above 0, got {mask_ratio}"
            )
        self.structure = structure
        self.field_vectors = FieldVectors(dense_features, fields, rngs=rngs)
        count, width = dense_features + len(fields), common_width(fields)
        if vector_norm:
            self.vector_norm = TokenNorm(count, width, rngs=rngs)
        flat, widths = count * width, hidden(top_mlp)

        def block(width: int, out: int) -> MaskBlock:
            return MaskBlock(flat, width, out, mask_ratio, rngs=rngs, dtype=dtype)

        if structure == "serial":
            if not widths:
                raise UserError(
                    f"top_mlp: a serial masknet needs the width of a block, got {top_mlp}"
                )
            inputs = (flat, *widths[:-1])
            self.blocks = nnx.List(map(block, inputs, widths))
            top = (widths[-1], 1)
        else:
            self.blocks = nnx.List(block(flat, block_width) for _ in range(blocks))
            top = (blocks * block_width, *widths, 1)
        self.top = MLP(top, last_relu=False, rngs=rngs, dtype=dtype)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        fields = self.field_vectors(dense, vectors)
        v = fields.reshape(fields.shape[0], -1)
        h = self.vector_norm(fields).reshape(v.shape) if hasattr(self, "vector_norm") else v
        with jax.named_scope("interaction"):
            if self.structure == "serial":
                for block in self.blocks:
                    h = block(v, h)
            else:
                h = jnp.concatenate([block(v, h) for block in self.blocks], axis=1)
        with jax.named_scope("top_mlp"):
            return at_least_float32(self.top(h)[:, 0])
