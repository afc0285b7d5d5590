"""DLRM (arXiv 1906.00091): dense features and pooled vectors to one logit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.errors import UserError
from dlrm_jax.models.fields import Field, Model, Vectors, hidden
from dlrm_jax.models.interaction import cat, dot, dot_of_columns, interaction_width
from dlrm_jax.models.mlp import MLP


class DLRM(Model):
    """``top_mlp(interact(bottom_mlp(dense), vectors))``.

    Without dense features the bottom MLP returns the same learned vector for all examples. Its
    products with the other vectors are the terms of a linear model.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs, in the order in which their vectors interact.
        bottom_mlp: widths of the layers; a ReLU follows each.
        top_mlp: widths of the layers; the last is 1, the logit, without a ReLU.
        interaction: ``"dot"``, for which all widths must equal ``bottom_mlp[-1]``, or ``"cat"``.
        self_interaction: whether to include the dot product of each vector with itself.
        rngs: random number generators of the initial values.
        dtype: type in which the MLPs compute; the interaction stays in at least float32.
        param_dtype: type of the parameters.

    Raises:
        UserError: the widths don't fit together.
    """

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        bottom_mlp: Sequence[int],
        top_mlp: Sequence[int],
        *,
        interaction: Literal["dot", "cat"] = "dot",
        self_interaction: bool = False,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
    ):
        if not bottom_mlp:
            raise UserError("the bottom MLP needs at least one layer, got none")
        wrong = {f.name: f.width for f in fields if f.width != bottom_mlp[-1]}
        if interaction == "dot" and wrong:
            raise UserError(
                f"dot interaction needs vectors as wide as the bottom MLP's output, "
                f"{bottom_mlp[-1]}; got {wrong}"
            )
        width = interaction_width(
            interaction, bottom_mlp[-1], [field.width for field in fields], self_interaction
        )
        self.names = tuple(field.name for field in fields)
        self.interaction = interaction
        self.self_interaction = self_interaction
        self.bottom = MLP(
            [dense_features, *bottom_mlp],
            last_relu=True,
            rngs=rngs,
            dtype=dtype,
            param_dtype=param_dtype,
        )
        self.top = MLP(
            [width, *hidden(top_mlp), 1],
            last_relu=False,
            rngs=rngs,
            dtype=dtype,
            param_dtype=param_dtype,
        )

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        pooled = [vectors[name] for name in self.names]
        wide = jnp.result_type(jnp.float32, self.bottom.dtype, *(x.dtype for x in pooled))
        native = self.runs_natively and wide == jnp.float32
        if native and self.training:
            return self._of_columns(dense, pooled)
        # A low-precision MLP must not drag the products of the tables' vectors down with it.
        with jax.named_scope("bottom_mlp"):
            x = self.bottom(dense)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        with jax.named_scope("interaction"):
            kind, itself = self.interaction, self.self_interaction
            z = cat(x, pooled) if kind == "cat" else dot(x, pooled, itself, native)
        with jax.named_scope("top_mlp"):
            logits = self.top(z)[:, 0]
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    @property
    def runs_natively(self) -> bool:
        """See `Model`."""
        return self.native and self.interaction == "dot"

    def _of_columns(self, dense: Array, pooled: list[Array]) -> Float[Array, " B"]:
        """The same, to be differentiated, with the samples side by side.

        That suits the native interaction and its derivative, and the gradients of the MLPs
        (`MLP.columns`). Predictions gain nothing by it.
        """
        with jax.named_scope("bottom_mlp"):
            # A copy: products that read it transposed are slower.
            x = self.bottom.columns(jax.lax.optimization_barrier(dense.T))
        with jax.named_scope("interaction"):
            z = dot_of_columns(x.astype(jnp.float32), pooled, self.self_interaction)
        with jax.named_scope("top_mlp"):
            logits = self.top.columns(z)[0]
        return logits.astype(jnp.float32)
