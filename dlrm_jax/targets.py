"""Devices that programs are compiled for on a machine that has none of them.

XLA's compilers for TPUs and GPUs need a description of a device, not the device. What they make is
the program that would run: its memory, its collectives and its kernels can be read, but not timed.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from dlrm_jax.errors import UserError
from dlrm_jax.gpu_targets import GPUS, target_config
from dlrm_jax.mesh import mesh_of

_GPUS_PER_HOST = 8
_CHIPS_PER_HOST = 4  # of larger slices of a TPU


class _Compiler(NamedTuple):
    """A package that has the compiler for a target, and the extra of this one that installs it."""

    modules: tuple[str, ...]
    extra: str


_CUDA = _Compiler(("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12"), "aot-cuda")
_LIBTPU = _Compiler(("libtpu",), "aot-tpu")


class _Tpu(NamedTuple):
    """A generation of TPUs: how its chips are joined, and how many at most.

    Google Cloud's pages on TPU v4, v5e, v5p and v6e: the largest slices that a job may have.
    """

    axes: int
    chips: int


_TPUS = {
    "tpu_v4": _Tpu(3, 4096), "tpu_v5e": _Tpu(2, 256), "tpu_v5p": _Tpu(3, 6144),
    "tpu_v6e": _Tpu(2, 256),
}  # fmt: skip

TARGETS = (*GPUS, *_TPUS)
"""Names of the devices, those of `embedding.planning.devices`."""


class Target(NamedTuple):
    """Devices to compile for.

    Attributes:
        device: one of `TARGETS`.
        shape: number of devices, or the chips of a TPU along each axis; empty for as many as the
            mesh has.
    """

    device: str
    shape: tuple[int, ...] = ()


def parse_target(text: str) -> Target:
    """Reads ``"h100"``, ``"h100:8"`` or ``"tpu_v5e:16x16"``.

    Raises:
        UserError: there is no such device, or what follows isn't a number or a topology of it.
    """
    device, colon, size = text.partition(":")
    if device not in TARGETS:
        raise UserError(
            f"--target: expected one of {', '.join(TARGETS)}, alone or with a number of devices "
            f"such as h100:8, got {text!r}"
        )
    axes = {1, _TPUS[device].axes} if device in _TPUS else {1}
    numbers = size.split("x")
    is_size = all(re.fullmatch(r"[1-9]\d{0,5}", number) for number in numbers)
    if colon and not (is_size and len(numbers) in axes):
        example = {1: f"{device}:8", 2: f"{device}:4x8", 3: f"{device}:2x2x4"}
        raise UserError(
            f"--target: expected {' or '.join(example[n] for n in sorted(axes))}, a number of "
            f"devices{' or the chips along each axis' if len(axes) > 1 else ''}, got {text!r}"
        )
    return Target(device, tuple(map(int, numbers)) if colon else ())


def lacks(device: str) -> str | None:
    """What is missing to compile for a device, in words; None for nothing."""
    compiler = _LIBTPU if device in _TPUS else _CUDA
    if any(_is_installed(module) for module in compiler.modules):
        return None
    return (
        f"expected JAX's compiler for it, one of {', '.join(compiler.modules)}, found none; "
        f'install it: pip install -e ".[{compiler.extra}]" in the directory of dlrm-jax'
    )


def target_mesh(target: Target | str, shape: tuple[int, int]) -> Mesh:
    """A mesh of devices that are described, not there.

    This process keeps no program that it compiles from then on: JAX can't read those of such
    devices again.

    Args:
        target: devices, see `parse_target`.
        shape: data-parallel groups and model shards.

    Raises:
        UserError: the compiler isn't installed or already runs, or so many of these devices aren't
            sold together, or the mesh has another number of them.
    """
    device, size = parse_target(target) if isinstance(target, str) else target
    if missing := lacks(device):
        raise UserError(f"--target={device}: {missing}")
    count = math.prod(shape)
    if size and math.prod(size) != count:
        given = "x".join(map(str, size))
        raise UserError(
            f"--mesh: expected DxM with D times M = {math.prod(size)}, the devices of "
            f"--target={device}:{given}, got {shape[0]}x{shape[1]}"
        )
    topology = size if len(size) > 1 else ()
    described = _chips(device, count, topology) if device in _TPUS else _gpus(device, count)
    try:
        found = topologies.get_topology_desc(**described).devices
    except RuntimeError as error:
        raise UserError(
            f"--target={device}: {count} devices can't be described: {error}"
        ) from error
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
    return mesh_of(sorted(found, key=lambda device: (device.process_index, device.id)), shape)


def _gpus(device: str, count: int) -> dict[str, Any]:
    if count > _GPUS_PER_HOST and count % _GPUS_PER_HOST:
        raise UserError(
            f"--mesh: expected at most {_GPUS_PER_HOST} GPUs or a multiple, as a host has, got "
            f"{count}"
        )
    hosts = -(-count // _GPUS_PER_HOST)
    return {
        "platform": "cuda", "topology_name": "", "target_config": target_config(device),
        "topology": f"1x{hosts}x{count // hosts}",
    }  # fmt: skip


def _chips(device: str, count: int, topology: tuple[int, ...]) -> dict[str, Any]:
    tpu = _TPUS[device]
    if (not topology and count & (count - 1)) or count > tpu.chips:
        raise UserError(
            f"--mesh: expected 1, 2, 4, 8 and so on up to {tpu.chips} chips of {device}, got "
            f"{count}"
        )
    # Without a TPU, its library would ask the cloud which one this is, and log that. No chip is
    # opened, so others may use the library at the same time.
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-8"), ("TPU_STDERR_LOG_LEVEL", "3"),
        ("TPU_MIN_LOG_LEVEL", "3"), ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):  # fmt: skip
        os.environ.setdefault(name, value)
    bounds = topology or _sold(tpu.axes, count)
    described: dict[str, Any] = {
        "platform": "tpu",
        "topology_name": f"{device.removeprefix('tpu_')}:{'x'.join(map(str, bounds))}",
    }
    if count < _CHIPS_PER_HOST:
        described["chips_per_host_bounds"] = [*bounds, 1][:3]
    if device == "tpu_v4":
        # The two cores of a chip are one device, as they are to programs by default; without it
        # they are described as two devices.
        described["chip_config_name"] = "megacore"
    return described


def _sold(axes: int, count: int) -> tuple[int, ...]:
    """The chips along each axis of a slice of 2^n: as equal as can be, the last ones larger.

    Slices of three axes have at least 2 x 2 chips in the first two, those of a host.
    """
    doublings = count.bit_length() - 1
    if axes == 3 and doublings <= 2:
        return (*_sold(2, count), 1)
    return tuple(1 << (doublings + axis) // axes for axis in range(axes))


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its package
        return False
