"""SSR (arXiv 2604.08011): views of the inputs that see few of their numbers each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int

from dlrm_jax.errors import UserError
from dlrm_jax.models.fields import (
    Field,
    Model,
    Vectors,
    check_positive,
    concatenated,
    concatenated_width,
    hidden,
)
from dlrm_jax.models.mlp import MLP, at_least_float32
from dlrm_jax.models.tokens import TokenLinear, TokenNorm


def drawn_columns(
    width: int, views: int, count: int, seed: tuple[int, ...]
) -> Int[np.ndarray, "V n"]:
    """Different columns for each view, in rising order, drawn without a model's state.

    A checkpoint holds weights of these columns and not the columns, so they must be the same
    forever: raw words of a bit generator are, see NEP 19, and NumPy's permutations aren't.

    Args:
        width: number of columns to choose from.
        views: number of views, V.
        count: number of columns of each view, n.
        seed: numbers that determine the choice.
    """
    words = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(views * width)
    order = np.argsort(words.reshape(views, width), axis=1, kind="stable")
    return np.sort(order[:, :count], axis=1)


class StaticFilter(nnx.Module):
    """Fixed random columns of the input for each view: SSR-S.

    Args:
        width: width of the input.
        views: number of views, V.
        view_width: number of columns of a view.
        seed: numbers that determine the columns.
    """

    def __init__(self, width: int, views: int, view_width: int, seed: tuple[int, ...]):
        self.width, self.views, self.view_width, self.seed = width, views, view_width, seed

    def __call__(self, x: Float[Array, "B W"]) -> Float[Array, "B V d"]:
        """Picks the columns."""
        return x[:, drawn_columns(self.width, self.views, self.view_width, self.seed)]


class DynamicFilter(nnx.Module):
    """Projections of the input whose numbers compete: SSR-D with iterative competitive sparsity.

    x₀ = ReLU(W x), xₜ₊₁ = ReLU(xₜ - αₜ mean(xₜ)) for T iterations, and γ ∘ x_T at last. Numbers
    below a share of the mean become zero. α starts from 0.1, γ from 1.

    Args:
        width: width of the input.
        views: number of views, V.
        view_width: width of a view.
        iterations: T.
        rngs: random number generators of the initial values.
        dtype: type in which the projection computes.
    """

    def __init__(
        self,
        width: int,
        views: int,
        view_width: int,
        iterations: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        widths = (width, views * view_width)
        self.projection = MLP(widths, last_relu=False, rngs=rngs, dtype=dtype)
        self.rates = nnx.Param(0.1 * jnp.ones((iterations, views)))
        self.scale = nnx.Param(jnp.ones((views, view_width)))

    def __call__(self, x: Float[Array, "B W"]) -> Float[Array, "B V d"]:
        """Lets each view's numbers compete."""
        projected = at_least_float32(self.projection(x))
        z = jax.nn.relu(projected.reshape(x.shape[0], *self.scale.shape))
        rates = self.rates[...]
        for i in range(len(rates)):
            z = jax.nn.relu(z - rates[i, :, None] * jnp.mean(z, axis=2, keepdims=True))
        return self.scale[...] * z


class SSRLayer(nnx.Module):
    """LN(GELU(h V + b)) of each view, whose filtered input is h.

    Args:
        filtering: filter of the input.
        views: number of views, V.
        width: width of a view, d.
        rngs: random number generators of the initial values.
        dtype: type of the operands of products.
    """

    def __init__(
        self,
        filtering: StaticFilter | DynamicFilter,
        views: int,
        width: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        self.filter = filtering
        self.fusion = TokenLinear(views, width, width, rngs=rngs, dtype=dtype)
        self.norm = TokenNorm(views, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B W"]) -> Float[Array, "B V d"]:
        """Filters and fuses each view."""
        return self.norm(jax.nn.gelu(self.fusion(self.filter(x)), approximate=False))


class SSR(Model):
    """Layers that filter, then fuse, each of several views, and an MLP to the logit.

    A layer reads all views of the one before, side by side; the MLP reads the mean of the last
    layer's. Formulas follow the algorithms in the authors' repository; the mean is that of a
    reimplementation, UniRank. The number of iterations and where α starts from are that one's, too.

    Args:
        dense_features: number of dense features, D.
        fields: the categorical inputs.
        top_mlp: widths of the MLP; the last is 1, the logit.
        layers: number of layers.
        views: number of views, V.
        view_width: width of a view.
        filters: ``"static"``, fixed random columns (SSR-S), or ``"dynamic"`` (SSR-D).
        filter_seed: seed of the static filters. A checkpoint fits this seed alone.
        iterations: number of iterations of the dynamic filters.
        rngs: random number generators of the initial values.
        dtype: type of the operands of products; filters stay in at least float32.

    Raises:
        UserError: a static view is wider than the inputs, a number isn't positive, or an option is
            one of the other filters.
    """

    def __init__(
        self,
        dense_features: int,
        fields: Sequence[Field],
        top_mlp: Sequence[int],
        *,
        layers: int = 2,
        views: int = 4,
        view_width: int = 32,
        filters: Literal["static", "dynamic"] = "static",
        filter_seed: int = 0,
        iterations: int = 5,
        rngs: nnx.Rngs,
        dtype: DTypeLike = jnp.float32,
    ):
        check_positive(layers=layers, views=views, view_width=view_width, iterations=iterations)
        unread = filter_seed != 0 if filters == "dynamic" else iterations != 5
        if unread:
            name = "filter_seed" if filters == "dynamic" else "iterations"
            raise UserError(
                f"model_options: {name} has no effect with filters={filters}; leave it out"
            )
        self.fields = tuple(fields)
        inputs = concatenated_width(dense_features, fields)
        if filters == "static" and view_width > inputs:
            raise UserError(
                f"model_options: view_width: expected at most {inputs}, the numbers of an example, "
                f"got {view_width}; or give filters=dynamic"
            )

        def filtering(layer: int) -> StaticFilter | DynamicFilter:
            width = views * view_width if layer else inputs
            if filters == "static":
                return StaticFilter(width, views, view_width, (filter_seed, layer))
            return DynamicFilter(width, views, view_width, iterations, rngs=rngs, dtype=dtype)

        self.layers = nnx.List(
            SSRLayer(filtering(i), views, view_width, rngs=rngs, dtype=dtype) for i in range(layers)
        )
        widths = (view_width, *hidden(top_mlp), 1)
        self.top = MLP(widths, last_relu=False, rngs=rngs, dtype=dtype)

    def __call__(self, dense: Float[Array, "B D"], vectors: Vectors) -> Float[Array, " B"]:
        """Returns the logits."""
        x = concatenated(dense, vectors, self.fields)
        with jax.named_scope("interaction"):
            views = self.layers[0](x)
            for layer in list(self.layers)[1:]:
                views = layer(views.reshape(x.shape[0], -1))
        with jax.named_scope("top_mlp"):
            return at_least_float32(self.top(jnp.mean(views, axis=1))[:, 0])
