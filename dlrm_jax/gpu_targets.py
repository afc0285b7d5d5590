"""Descriptions of GPUs for XLA's compiler, as its GpuTargetConfigProto in text form.

From NVIDIA's data sheets and from the table of compute capabilities in its CUDA C++ Programming
Guide. Sizes of memory and caches and clocks are as drivers report them, and as XLA itself has them
in ``xla/backends/gpu/target_config/specs``.
"""

from __future__ import annotations

from typing import NamedTuple


class _Gpu(NamedTuple):
    """A GPU.

    Attributes:
        name: JAX's name of it, ``device_kind``.
        capability: compute capability.
        cores: number of streaming multiprocessors.
        units: float32 units of each.
        shared_memory: bytes of shared memory of each; a block of threads may have 1 KiB less.
        clock: highest clock, in GHz.
        l2: bytes of its cache.
        memory: bytes of its memory.
        bandwidth: bandwidth of its memory, in bytes per second.
        features: XLA's name for instructions of this capability alone, such as those of ``sm_90a``.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    units: int
    shared_memory: int
    clock: float
    l2: int
    memory: int
    bandwidth: int
    features: str = "ACCELERATED_FEATURES"


GPUS = {
    # NVIDIA A100 80GB SXM: 108 multiprocessors of capability 8.0, 40 MB of L2, 2,039 GB/s.
    "a100": _Gpu(
        "NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 167_936, 1.41, 41_943_040, 85_100_068_864,
        2_039_040_000_000, "NONE",
    ),
    # NVIDIA H100 SXM: 132 of 9.0, 50 MB, 3.35 TB/s.
    "h100": _Gpu(
        "NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 233_472, 1.98, 52_428_800, 84_942_979_072,
        3_352_320_000_000,
    ),
    # NVIDIA H200 SXM: the chip of the H100 with 141 GB at 4.8 TB/s.
    "h200": _Gpu(
        "NVIDIA H200", (9, 0), 132, 128, 233_472, 1.98, 52_428_800, 151_397_597_184,
        4_800_000_000_000,
    ),
    # NVIDIA B200: 148 of 10.0, 126 MB, 180 GB at 8 TB/s; drivers report 7.67.
    "b200": _Gpu(
        "NVIDIA B200", (10, 0), 148, 128, 233_472, 1.965, 132_644_864, 191_514_411_008,
        7_672_320_000_000,
    ),
}  # fmt: skip
"""GPUs by name, those of `embedding.planning.devices`."""


def target_config(name: str) -> str:
    """The description of one of `GPUS`."""
    gpu = GPUS[name]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {gpu.shared_memory}
  shared_memory_per_block_optin: {gpu.shared_memory - 1024}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: {gpu.cores} fpus_per_core: {gpu.units} clock_rate_ghz: {gpu.clock}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  memory_bandwidth: {gpu.bandwidth} l2_cache_size: {gpu.l2} device_memory_size: {gpu.memory}
  cuda_compute_capability {{
    major: {gpu.capability[0]} minor: {gpu.capability[1]} feature_extension: {gpu.features}
  }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{gpu.name}"
"""
