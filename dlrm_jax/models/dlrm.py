"""DLRM (arXiv 1906.00091): dense features and pooled vectors to one logit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from dlrm_jax.errors import UserError
from dlrm_jax.models import interaction
from dlrm_jax.models.mlp import MLP


class DLRM(nnx.Module):
    """``top_mlp(interact(bottom_mlp(dense), vectors))``; knows no tables and no mesh.

    Args:
        dense_features: the number of dense features, D.
        vectors: the names of the pooled vectors, in the order in which they interact,
            with their widths.
        bottom_mlp: widths of the layers; a ReLU follows each.
        top_mlp: widths of the layers; the last is 1, the logit, without a ReLU.
        interaction_kind: ``"dot"``, which needs all widths to equal ``bottom_mlp[-1]``,
            or ``"cat"``.
        self_interaction: with the dot products of each vector with itself.
        rngs: of the initial values.
        dtype: that the MLPs compute in; the interaction stays in at least float32.
        param_dtype: of the parameters.

    Raises:
        UserError: the widths don't fit together.
    """

    def __init__(
        self,
        dense_features: int,
        vectors: Mapping[str, int],
        bottom_mlp: Sequence[int],
        top_mlp: Sequence[int],
        *,
        interaction_kind: Literal["dot", "cat"] = "dot",
        self_interaction: bool = False,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
    ):
        wrong = {name: width for name, width in vectors.items() if width != bottom_mlp[-1]}
        if interaction_kind == "dot" and wrong:
            raise UserError(
                f"dot interaction needs vectors as wide as the bottom MLP's output, "
                f"{bottom_mlp[-1]}; got {wrong}"
            )
        if top_mlp[-1] != 1:
            raise UserError(f"the top MLP must end in 1, the logit; got {tuple(top_mlp)}")
        width = interaction.interaction_width(
            interaction_kind, bottom_mlp[-1], list(vectors.values()), self_interaction
        )
        self.vectors = tuple(vectors)
        self.interaction_kind = interaction_kind
        self.self_interaction = self_interaction
        self.bottom = MLP(
            [dense_features, *bottom_mlp],
            last_relu=True,
            rngs=rngs,
            dtype=dtype,
            param_dtype=param_dtype,
        )
        self.top = MLP(
            [width, *top_mlp], last_relu=False, rngs=rngs, dtype=dtype, param_dtype=param_dtype
        )

    def __call__(
        self, dense: Float[Array, "B D"], pooled: Mapping[str, Float[Array, "B _"]]
    ) -> Float[Array, " B"]:
        """Returns the logits; their sigmoid is the click probability."""
        vectors = [pooled[name] for name in self.vectors]
        # A low-precision MLP must not drag the products of the tables' vectors down with it.
        with jax.named_scope("bottom_mlp"):
            x = self.bottom(dense)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        with jax.named_scope("interaction"):
            if self.interaction_kind == "cat":
                z = interaction.cat(x, vectors)
            else:
                z = interaction.dot(x, vectors, self.self_interaction)
        with jax.named_scope("top_mlp"):
            logits = self.top(z)[:, 0]
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
