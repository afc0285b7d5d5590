"""Which kernels compute HSTU's attention on the devices that a program is made for."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from dlrm_jax.backend import backend_named

_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)  # kernels sum in float32


def kernels_for(dtype: Any) -> ModuleType | None:
    """The module of the kernels for these devices; None if XLA makes the program of them.

    The devices are those of the mesh around what is traced: a program may be compiled for others
    than JAX has.

    Args:
        dtype: dtype of the values.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None or dtype not in _DTYPES:
        return None
    attention = backend_named(device.platform).attention
    # They import Pallas, which takes a second.
    if attention == "mosaic":
        from dlrm_jax.models import pointwise_tpu

        return pointwise_tpu
    if attention == "triton":
        from dlrm_jax.models import pointwise_gpu

        return pointwise_gpu
    return None
