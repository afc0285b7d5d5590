"""Devices as a planner and a simulation see them: memory, bandwidths and speeds."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from typing import Any

from dlrm_jax.embedding.planning import tpu_layout
from dlrm_jax.embedding.planning.data_sheets import SHEETS, Reached, Sheet, reached
from dlrm_jax.embedding.planning.torus import Torus
from dlrm_jax.errors import UserError

Numbers = Any
"""A number, or an array of them."""


@dataclasses.dataclass(frozen=True)
class LinkSeconds:
    """The seconds of a collective, by the links that it takes.

    Attributes:
        host: seconds on the links between devices of a host.
        network: seconds on the network between hosts.
    """

    host: Numbers
    network: Numbers

    def __add__(self, other: LinkSeconds) -> LinkSeconds:
        return LinkSeconds(self.host + other.host, self.network + other.network)


@dataclasses.dataclass(frozen=True)
class Device:
    """One of equal devices. Its figures are what programs reach, see `data_sheets`.

    Attributes:
        name: name for people.
        memory: size of the memory, in bytes.
        memory_bandwidth: bandwidth for arrays that are read or written from end to end, in bytes
            per second.
        row_bandwidth: bandwidth for rows at random, with their bytes in whole granules.
        granule: size of the smallest memory access, in bytes.
        link_bandwidth: bandwidth from one device to the others of its host, in one direction.
        network_bandwidth: bandwidth from one device to other hosts, in one direction.
        devices_per_host: number of devices that the fast links join.
        latency: seconds that a collective takes besides moving its bytes.
        launch: seconds that a kernel takes besides its work.
        flops32: floating point operations a second of matrix products of float32.
        flops: operations of products whose factors are rounded to TF32.
        flops16: operations of products of bfloat16.
        emulated: whether the devices share the cores and the memory of one host.
        torus: axes of the links; None for a switch.
        tiled: whether memory has tiles, see `tpu_layout`.
    """

    name: str
    memory: int
    memory_bandwidth: float
    row_bandwidth: float
    granule: int
    link_bandwidth: float
    network_bandwidth: float
    devices_per_host: int
    latency: float
    launch: float
    flops32: float
    flops: float
    flops16: float
    emulated: bool = False
    torus: Torus | None = None
    tiled: bool = False

    @classmethod
    def of(cls, name: str, sheet: Sheet, share: Reached) -> Device:
        """The device of a data sheet.

        Args:
            name: name for people.
            sheet: its data sheet.
            share: share of it that programs reach.
        """
        giga, tera = 1e9, 1e12
        return cls(
            name,
            memory=round(sheet.memory * giga),
            memory_bandwidth=share.bandwidth * sheet.bandwidth * giga,
            row_bandwidth=share.rows * sheet.bandwidth * giga,
            granule=share.granule,
            link_bandwidth=share.link * sheet.link * giga,
            network_bandwidth=share.network * sheet.network * giga,
            devices_per_host=sheet.devices_per_host,
            latency=share.latency,
            launch=share.launch,
            flops32=share.products * sheet.flops32 * tera,
            flops=share.products * sheet.flops * tera,
            flops16=share.products * sheet.flops16 * tera,
            torus=sheet.torus,
            tiled=share.tiled,
        )

    @property
    def memory_for_tables(self) -> float:
        """Bytes for tables and optimizer state; the other arrays of a step need the rest."""
        return _SHARE_FOR_TABLES * self.memory

    def row_seconds(self, width: int, itemsize: int) -> float:
        """The seconds of reading one row of so many numbers at random.

        Args:
            width: numbers of a row.
            itemsize: bytes of a number.
        """
        if self.tiled:
            return tpu_layout.row_access(width, itemsize) / self.row_bandwidth
        return math.ceil(width * itemsize / self.granule) * self.granule / self.row_bandwidth

    def stored_bytes(self, width: int, itemsize: int) -> int:
        """The bytes that a row of so many numbers needs in memory, with its padding."""
        return (tpu_layout.stored_width(width) if self.tiled else width) * itemsize

    def exchange(self, nbytes: Numbers, devices: int, stride: int = 1) -> LinkSeconds:
        """The seconds of an all-to-all.

        Args:
            nbytes: bytes of its result on one device.
            devices: number of devices that take part.
            stride: distance between devices that take part, in the order of the hosts.
        """
        near, far = self._near_and_far(stride, devices)
        if self.torus and near:
            together = self._together(stride, devices)
            near = self.torus.exchange(together, stride) * together / devices
        return LinkSeconds(
            nbytes * near / self.link_bandwidth, nbytes * far / self.network_bandwidth
        )

    def gather(self, nbytes: Numbers, stride: int, devices: int) -> LinkSeconds:
        """The seconds of an all-gather, or of a reduce-scatter of so many bytes.

        Devices of one host that gather the same data share the network.

        Args:
            nbytes: bytes of its result on one device.
            stride: distance between devices that take part, in the order of the hosts.
            devices: number of devices that take part.
        """
        near, far = self._near_and_far(stride, devices)
        together = self._together(stride, devices)
        passes = self.torus.gather(together, stride) if self.torus and together > 1 else 1.0
        return LinkSeconds(
            nbytes * (near + far) * passes / self.link_bandwidth * (together > 1),
            nbytes * far / together / self.network_bandwidth,
        )

    def all_reduce(
        self, nbytes: Numbers, stride: int, devices: int, in_network: bool = False
    ) -> LinkSeconds:
        """The seconds of an all-reduce: of a reduce-scatter and an all-gather, as in a ring.

        Args:
            nbytes: bytes of its result on one device.
            stride: distance between devices that take part, in the order of the hosts.
            devices: number of devices that take part.
            in_network: whether switches add up what hosts send, as SHARP does: each byte then goes
                to the network once and comes back once, at the same time.
        """
        half = self.gather(nbytes, stride, devices)
        return half + (LinkSeconds(half.host, 0.0) if in_network else half)

    def _together(self, stride: int, devices: int) -> int:
        """The number of devices in one host that take part."""
        return max(1, min(devices, self.devices_per_host // stride))

    def _near_and_far(self, stride: int, devices: int) -> tuple[float, float]:
        """The shares of a collective's bytes from the same host and from other hosts."""
        together = self._together(stride, devices)
        return (together - 1) / devices, (devices - together) / devices


# Gradients, exchanged vectors and the dense model take the rest.
_SHARE_FOR_TABLES = 0.75

DEVICES = {name: Device.of(name, sheet, reached(name)) for name, sheet in SHEETS.items()}
# Two cores of an x86-64 server, which emulate all devices, measured: gathers of 64-byte rows from
# 2 GB; links are copies in memory.
DEVICES["cpu"] = Device(
    "cpu",
    memory=16 * 2**30,
    memory_bandwidth=10e9,
    row_bandwidth=2.5e9,
    granule=64,
    link_bandwidth=5e9,
    network_bandwidth=1e9,
    devices_per_host=8,
    latency=50e-6,
    launch=5e-6,
    flops32=1e11,
    flops=1e11,
    flops16=1e11,
    emulated=True,
)


def device(name: str) -> Device:
    """The device of this name.

    Raises:
        UserError: the name is unknown.
    """
    if name not in DEVICES:
        raise UserError(f"device: expected one of {', '.join(DEVICES)}, got {name!r}")
    return DEVICES[name]


# Parts of JAX's names of devices. TPUs are "TPU v4", "TPU v5 lite", "TPU v5" and "TPU v6 lite", and
# in other programs v5e, v5p and v6e. A GH200 is an H100 with at least its memory.
_KINDS = {
    "cpu": "cpu",
    "gh200": "h100",
    "h100": "h100",
    "gb200": "gb200",
    "b200": "b200",
    "h200": "h200",
    "a100": "a100",
    "mi300x": "mi300x",
    "tpu v4": "tpu_v4",
    "tpu v5 lite": "tpu_v5e",
    "tpu v5e": "tpu_v5e",
    "tpu v5": "tpu_v5p",
    "tpu v6": "tpu_v6e",
}


def device_like(kind: str) -> Device:
    """The device that resembles a kind of JAX device.

    For an unknown kind, a warning says so, and it is the H100, or of TPUs the v5e: such plans are
    valid, but maybe not the best. If the kind names less memory, as that of an A100 of 40 GB or of
    a part of one does, the device has so much.

    Args:
        kind: kind as in ``jax.devices()[0].device_kind``, such as ``"NVIDIA A100-SXM4-80GB"``.
    """
    lower = kind.lower()
    name = next((name for part, name in _KINDS.items() if part in lower), None)
    if name is None:
        name = "tpu_v5e" if "tpu" in lower else "h100"
        warnings.warn(
            f"the planner has no data sheet of {kind!r} and plans for {name}; the plan is valid, "
            f"but maybe not the fastest: python -m dlrm_jax plan makes one for another device",
            stacklevel=2,
        )
    found = DEVICES[name]
    # Of more than one size the smallest is meant: "GH200 480GB" counts its CPU's memory.
    named = [int(size) * 10**9 for size in re.findall(r"(\d+)gb", lower)]
    return dataclasses.replace(found, memory=min([found.memory, *named]))
