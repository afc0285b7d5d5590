"""Devices as a planner sees them: their memory and their bandwidths."""

from __future__ import annotations

import dataclasses
import math

from dlrm_jax.errors import UserError

_GB = 1e9
_US = 1e-6


@dataclasses.dataclass(frozen=True)
class Device:
    """One of equal devices, by its data sheet. Bandwidths are bytes per second in one direction.

    Attributes:
        name: name for people.
        memory: size of the memory, in bytes.
        memory_bandwidth: bandwidth for arrays that are read or written from end to end.
        row_bandwidth: bandwidth for rows at random, with their bytes in whole granules.
        granule: size of the smallest memory access, in bytes.
        link_bandwidth: bandwidth from one device to the others of its host.
        network_bandwidth: bandwidth from one device to other hosts.
        devices_per_host: number of devices that the fast links join.
        latency: seconds that a collective takes besides moving its bytes.
        emulated: whether the devices share the cores and the memory of one host.
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
    emulated: bool = False

    @property
    def memory_for_tables(self) -> float:
        """Bytes for tables and optimizer state; the other arrays of a step need the rest."""
        return _SHARE_FOR_TABLES * self.memory

    def row_seconds(self, nbytes: int) -> float:
        """The seconds of reading one row of so many bytes at random."""
        return math.ceil(nbytes / self.granule) * self.granule / self.row_bandwidth

    def exchange_seconds(self, nbytes: float, devices: int, stride: int = 1) -> float:
        """The seconds of an all-to-all.

        Args:
            nbytes: bytes of its result on one device.
            devices: number of devices that take part.
            stride: distance between devices that take part, in the order of the hosts.
        """
        near, far = self._near_and_far(stride, devices)
        return nbytes * (near / self.link_bandwidth + far / self.network_bandwidth)

    def gather_seconds(self, nbytes: float, stride: int, devices: int) -> float:
        """The seconds of an all-gather; an all-reduce of so many bytes takes twice as long.

        Devices of one host that gather the same data share the network.

        Args:
            nbytes: bytes of its result on one device.
            stride: distance between devices that take part, in the order of the hosts.
            devices: number of devices that take part.
        """
        near, far = self._near_and_far(stride, devices)
        together = self._together(stride, devices)
        far_share = far / together / self.network_bandwidth
        return nbytes * ((near + far) / self.link_bandwidth * (together > 1) + far_share)

    def _together(self, stride: int, devices: int) -> int:
        """The number of devices in one host that take part."""
        return max(1, min(devices, self.devices_per_host // stride))

    def _near_and_far(self, stride: int, devices: int) -> tuple[float, float]:
        """The shares of a collective's bytes from the same host and from other hosts."""
        together = self._together(stride, devices)
        return (together - 1) / devices, (devices - together) / devices


# Gradients, exchanged vectors and the dense model take the rest.
_SHARE_FOR_TABLES = 0.75

# No data sheet gives the bandwidth of rows at random. For GPUs and TPUs it is taken as half of the
# streaming bandwidth; for the CPU it is measured: gathers of 64-byte rows from 2 GB.
DEVICES = {
    # NVIDIA's data sheet of the H100 SXM: 80 GB, 3.35 TB/s, NVLink 900 GB/s in both directions.
    # DGX H100: eight GPUs, each with a 400 Gb/s adapter.
    "h100": Device(
        "h100", 80 * 10**9, 3350 * _GB, 1675 * _GB, 64, 450 * _GB, 50 * _GB, 8, 15 * _US
    ),
    # NVIDIA's data sheet of the A100 SXM: 80 GB, 2,039 GB/s, NVLink 600 GB/s in both directions.
    # DGX A100: eight GPUs, each with a 200 Gb/s adapter.
    "a100": Device(
        "a100", 80 * 10**9, 2039 * _GB, 1019 * _GB, 64, 300 * _GB, 25 * _GB, 8, 15 * _US
    ),
    # Google Cloud's page on the TPU v5p: 95 GiB, 2,765 GB/s, interconnect 1,200 GB/s in both
    # directions between the up to 6,144 chips of a slice, data centre network 50 Gb/s. A row
    # takes whole lines of 128 float32 numbers.
    "tpu_v5p": Device(
        "tpu_v5p", 95 * 2**30, 2765 * _GB, 1382 * _GB, 512, 600 * _GB, 6.25 * _GB, 6144, 5 * _US
    ),
    # Two cores of an x86-64 server, which emulate all devices: links are copies in memory.
    "cpu": Device("cpu", 16 * 2**30, 10 * _GB, 2.5 * _GB, 64, 5 * _GB, 1 * _GB, 8, 50 * _US, True),
}


def device(name: str) -> Device:
    """The device of this name.

    Raises:
        UserError: the name is unknown.
    """
    if name not in DEVICES:
        raise UserError(f"device: expected one of {', '.join(DEVICES)}, got {name!r}")
    return DEVICES[name]


def device_like(kind: str) -> Device:
    """The device that resembles a kind of JAX device.

    For an unknown kind it is the H100: such plans are valid, but maybe not the best.

    Args:
        kind: kind as in ``jax.devices()[0].device_kind``, such as ``"NVIDIA A100-SXM4-80GB"``.
    """
    kind = kind.lower()
    if "cpu" in kind:
        return DEVICES["cpu"]
    if "tpu" in kind:
        return DEVICES["tpu_v5p"]
    return DEVICES["a100"] if "a100" in kind else DEVICES["h100"]
