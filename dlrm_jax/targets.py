"""Devices that programs are compiled for on a machine that has none of them.

XLA's compilers for TPUs and GPUs need a description of a device, not the device. What they make is
the program that would run: its memory, its collectives and its kernels can be read, but not timed.
"""

from __future__ import annotations

import importlib.util
import math
import os
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from dlrm_jax.errors import UserError
from dlrm_jax.mesh import mesh_of

# XLA's GpuTargetConfigProto of an H100 SXM, of NVIDIA's data sheet and compute capability 9.0.
_H100 = """
    gpu_device_info {
      threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
      shared_memory_per_block: 49152 shared_memory_per_core: 233472
      shared_memory_per_block_optin: 232448
      registers_per_core_limit: 65536 registers_per_block_limit: 65536
      core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      memory_bandwidth: 3352000000000 l2_cache_size: 52428800 device_memory_size: 84929347584
      cuda_compute_capability { major: 9 minor: 0 }
    }
    platform_name: "CUDA"
    dnn_version_info { major: 9 minor: 10 }
    device_description_str: "NVIDIA H100 80GB HBM3"
"""
_GPUS_PER_HOST = 8
_CHIPS_PER_HOST = 4  # of larger slices of a TPU


class _Compiler(NamedTuple):
    """A package that has the compiler for a target, and the extra of this one that installs it."""

    modules: tuple[str, ...]
    extra: str


_CUDA = _Compiler(("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12"), "aot-cuda")
_TPU = _Compiler(("libtpu",), "aot-tpu")

_COMPILERS = {"h100": _CUDA, "tpu_v5e": _TPU, "tpu_v6e": _TPU}

TARGETS = tuple(_COMPILERS)
"""Names of the devices, those of `embedding.planning.devices`."""


def lacks(target: str) -> str | None:
    """What is missing to compile for a target, in words; None for nothing."""
    compiler = _COMPILERS[target]
    if any(_is_installed(module) for module in compiler.modules):
        return None
    return (
        f"expected JAX's compiler for it, one of {', '.join(compiler.modules)}, found none; "
        f'install it: pip install -e ".[{compiler.extra}]" in the directory of dlrm-jax'
    )


def target_mesh(target: str, shape: tuple[int, int]) -> Mesh:
    """A mesh of devices that are described, not there.

    This process keeps no program that it compiles from then on: JAX can't read those of such
    devices again.

    Args:
        target: one of `TARGETS`.
        shape: data-parallel groups and model shards.

    Raises:
        UserError: the compiler isn't installed or already runs, or so many of these devices aren't
            sold together.
    """
    if missing := lacks(target):
        raise UserError(f"--target={target}: {missing}")
    count = shape[0] * shape[1]
    described = _gpus(count) if _COMPILERS[target] is _CUDA else _chips(target, count)
    try:
        found = topologies.get_topology_desc(**described).devices
    except RuntimeError as error:
        raise UserError(
            f"--target={target}: {count} devices can't be described: {error}"
        ) from error
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
    return mesh_of(sorted(found, key=lambda device: (device.process_index, device.id)), shape)


def _gpus(count: int) -> dict[str, Any]:
    if count > _GPUS_PER_HOST and count % _GPUS_PER_HOST:
        raise UserError(
            f"--mesh: expected at most {_GPUS_PER_HOST} GPUs or a multiple, as a host has, got "
            f"{count}"
        )
    hosts = -(-count // _GPUS_PER_HOST)
    topology = f"1x{hosts}x{count // hosts}"
    return {
        "platform": "cuda", "topology_name": "", "target_config": _H100, "topology": topology
    }  # fmt: skip


def _chips(target: str, count: int) -> dict[str, Any]:
    if count & (count - 1) or count > 256:
        raise UserError(
            f"--mesh: expected 1, 2, 4, 8 and so on up to 256 chips of a TPU, got {count}"
        )
    # Without a TPU, its library would ask the cloud which one this is, and log that. No chip is
    # opened, so others may use the library at the same time.
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-8"), ("TPU_STDERR_LOG_LEVEL", "3"),
        ("TPU_MIN_LOG_LEVEL", "3"), ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):  # fmt: skip
        os.environ.setdefault(name, value)
    across = 1 << (count.bit_length() - 1) // 2
    down = count // across
    described: dict[str, Any] = {
        "platform": "tpu", "topology_name": f"{target.removeprefix('tpu_')}:{across}x{down}"
    }  # fmt: skip
    if count < _CHIPS_PER_HOST:
        described["chips_per_host_bounds"] = [across, down, 1]
    return described


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its package
        return False
