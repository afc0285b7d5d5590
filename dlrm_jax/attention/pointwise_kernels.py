"""Which kernels compute HSTU's attention on the devices that a program is made for."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from dlrm_jax.attention import pointwise_native
from dlrm_jax.backend import backend_named
from dlrm_jax.native import library

_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)  # kernels sum in float32

_FOR_ANY = contextvars.ContextVar("for_any_device", default=False)


@contextlib.contextmanager
def for_any_device() -> Iterator[None]:
    """What is traced inside gets no kernels: it runs on any device, of any machine."""
    token = _FOR_ANY.set(True)
    try:
        yield
    finally:
        _FOR_ANY.reset(token)


def kernels_for(dtype: Any) -> ModuleType | None:
    """The module of the kernels for these devices; None if XLA makes the program of them.

    The devices are those of the mesh around what is traced, or else of JAX's default backend: a
    program may be compiled for others than JAX has.

    Args:
        dtype: dtype of the values.
    """
    if dtype not in _DTYPES or _FOR_ANY.get():
        return None
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = jax.default_backend() if device is None else device.platform
    attention = backend_named(platform).attention
    if attention == "native":
        return pointwise_native if library.load() else None
    # They import Pallas, which takes a second.
    if attention == "mosaic":
        from dlrm_jax.attention import pointwise_tpu

        return pointwise_tpu
    if attention == "triton":
        from dlrm_jax.attention import pointwise_gpu

        return pointwise_gpu
    return None
