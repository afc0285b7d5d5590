"""The memory of devices, and whether arrays fit it, before they are made."""

from __future__ import annotations

import math
import os
from typing import Any

import jax
from jax.sharding import Mesh

from dlrm_jax.backend import backend_of
from dlrm_jax.errors import UserError


def memory_limit(device: Any) -> int | None:
    """Bytes that a JAX device has for arrays.

    None if it doesn't say so, as CPUs don't, nor those of `targets`, which aren't there.
    """
    try:
        return (device.memory_stats() or {}).get("bytes_limit")
    except jax.errors.JaxRuntimeError as error:
        if "addressable" not in str(error):
            raise
        return None


def check_memory(name: str, specs: Any, mesh: Mesh, details: str) -> None:
    """Checks that arrays fit a device. CPU devices share the memory of the machine.

    XLA would end with an error that names none of them, or wait for ever: an emulated device that
    gets no memory doesn't reach the collectives that the others wait in.

    Args:
        name: name of the arrays, for messages.
        specs: pytree of shapes, dtypes and shardings.
        mesh: mesh of the shardings.
        details: rest of the message, with what is large and what to do.

    Raises:
        UserError: they don't fit.
    """
    used = sum(
        math.prod(spec.sharding.shard_shape(spec.shape)) * spec.dtype.itemsize
        for spec in jax.tree.leaves(specs)
    )
    devices = mesh.local_devices
    memory = memory_limit(devices[0])
    if memory is None and backend_of(mesh).host_memory:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / len(devices)
    if memory is not None and used > memory:
        raise UserError(
            f"{name}: expected at most {memory / 2**30:.1f} GiB on each device, got "
            f"{used / 2**30:.1f} GiB with the state of the optimizer; {details}"
        )
