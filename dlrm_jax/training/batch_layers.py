"""Layers with batch statistics or random numbers, adapted to a mesh.

Each device calls the model with its own samples of a batch. In the model for training, a learner
replaces these layers, so that their results depend on the batch and not on the mesh.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt

from dlrm_jax.errors import UserError
from dlrm_jax.mesh import DATA, MODEL


class SampleDropout(nnx.Dropout):
    """Dropout whose mask for a sample depends on the sample's position in the batch.

    The first axis of its inputs is over the device's samples.
    """

    axes: tuple[str, ...]

    def __call__(
        self, inputs: Float[Array, "b *_"], *, deterministic: bool | None = None, rngs: Any = None
    ) -> Float[Array, "b *_"]:
        """See `nnx.Dropout`."""
        off = self.deterministic if deterministic is None else deterministic
        rngs = self.rngs if rngs is None else rngs
        if off or self.rate in (0, 1) or rngs is None:
            return super().__call__(inputs, deterministic=deterministic)
        source = rngs[self.rng_collection] if isinstance(rngs, nnx.Rngs) else rngs
        # Bypasses `DeviceStream`: the key must be the same on all devices.
        key = source if isinstance(source, jax.Array) else nnx.RngStream.__call__(source)
        broadcast = {dim % inputs.ndim for dim in self.broadcast_dims}
        shape = [1 if i in broadcast else n for i, n in enumerate(inputs.shape)]
        kept = 1 - self.rate
        if 0 in broadcast:
            mask = jax.random.bernoulli(key, kept, shape)
        else:
            position = jax.lax.axis_index(self.axes) * len(inputs) + jnp.arange(len(inputs))
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, position)
            mask = jax.vmap(lambda key: jax.random.bernoulli(key, kept, shape[1:]))(keys)
        return jnp.where(mask, inputs / kept, 0)


class DeviceStream(nnx.RngStream):
    """Random keys that differ from device to device."""

    axes: tuple[str, ...]

    def __call__(self) -> jax.Array:
        """The next key."""
        return jax.random.fold_in(super().__call__(), jax.lax.axis_index(self.axes))


def use_batch_layers(model: nnx.Module, axes: tuple[str, ...] = (DATA, MODEL)) -> None:
    """Replaces such layers anywhere in a model; parameters and other state stay.

    - `nnx.BatchNorm` takes its statistics over the whole batch, with a collective for each layer.
    - `nnx.Dropout` draws the same mask for a sample on every mesh.
    - Other draws from a model's `nnx.Rngs` differ from device to device, and so depend on the mesh.

    Args:
        model: model to change in place; it then runs only in a `jax.shard_map` over the mesh.
        axes: names of the mesh axes that batches are split over.
    """
    for _, layer in list(nnx.iter_graph(model)):
        changed: Any = layer
        if isinstance(layer, nnx.BatchNorm):
            changed.axis_name = axes
        elif type(layer) is nnx.Dropout:
            changed.__class__, changed.axes = SampleDropout, axes
        elif type(layer) is nnx.RngStream:
            changed.__class__, changed.axes = DeviceStream, axes


def agree(statistics: Any, axes: tuple[str, ...]) -> Any:
    """Makes statistics that a model has changed the same on all devices of these mesh axes.

    Those of `nnx.BatchNorm` already are. Other statistics are averaged over the devices; for
    integers, such as counters, the largest is taken.
    """

    def agreed(x: Array) -> Array:
        reduce = jax.lax.pmean if jnp.issubdtype(x.dtype, jnp.inexact) else jax.lax.pmax
        return reduce(x, axes)

    return jax.tree.map(agreed, statistics)


def split_model(model: nnx.Module) -> tuple[Any, Any, Any]:
    """Parameters, random streams and all other state of a model, as nested dicts."""
    _, *parts = nnx.split(model, nnx.Param, nnx.RngState, ...)
    params, rngs, statistics = map(nnx.to_pure_dict, parts)
    return params, rngs, statistics


def check_keys(rngs: Any) -> None:
    """Checks that random keys are of JAX's default kind, since a state keeps only their numbers.

    Raises:
        UserError: a key is of another kind.
    """
    own = jax.eval_shape(lambda: jax.random.key(0)).dtype
    for x in jax.tree.leaves(rngs):
        if _is_key(x) and x.dtype != own:
            raise UserError(
                f"the model has random keys of {x.dtype}, expected {own}; make them of the "
                f"nnx.Rngs that the model is given, or set jax_default_prng_impl"
            )


def raw_keys(rngs: Any) -> Any:
    """Converts random keys to plain numbers, for a state."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, rngs)


def keys_of(raw: Any, specs: Any, fold: Int[Array, ""] | None) -> Any:
    """Reverses `raw_keys`.

    Args:
        raw: result of `raw_keys`.
        specs: tree of keys or of their shapes and dtypes.
        fold: number to fold into each key; None leaves the keys unchanged.
    """

    def key(spec: Any, x: UInt[Array, "*_"]) -> Array:
        if not _is_key(spec):
            return x
        made = jax.random.wrap_key_data(x)
        return made if fold is None else jnp.vectorize(jax.random.fold_in)(made, fold)

    return jax.tree.map(key, specs, raw)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
