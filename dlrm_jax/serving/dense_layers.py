"""The layers of DLRM's dense model, noted for native code."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from dlrm_jax.artifact.dense_note import DenseNote, LinearNote
from dlrm_jax.models.dlrm import DLRM
from dlrm_jax.models.mlp import MLP, is_plain


def note_dense(model: Any) -> DenseNote | None:
    """The note of a dense model.

    Subclasses of DLRM have none: they may compute something else.

    Args:
        model: dense model, whose arrays are named by their place in it.

    Returns:
        None if it isn't DLRM with dot products, whose MLPs are float32 and have neither
        normalization nor dropout.
    """
    if type(model) is not DLRM or model.interaction != "dot":
        return None
    if not (_is_plain(model.bottom) and _is_plain(model.top)):
        return None
    bottom, top = _layers("bottom", model.bottom), _layers("top", model.top)
    return DenseNote(bottom, top, model.names, model.self_interaction)


def _is_plain(mlp: MLP) -> bool:
    types = {jnp.dtype(mlp.dtype), jnp.dtype(mlp.param_dtype)}
    types |= {jnp.dtype(layer.kernel[...].dtype) for layer in mlp.layers}
    plain = type(mlp) is MLP and not mlp.is_regularized and all(map(is_plain, mlp.layers))
    return plain and types == {jnp.dtype(jnp.float32)}


def _layers(name: str, mlp: MLP) -> tuple[LinearNote, ...]:
    return tuple(
        LinearNote(f"{name}.layers.{i}.kernel", f"{name}.layers.{i}.bias", relu)
        for i, relu in enumerate(mlp.relus)
    )
