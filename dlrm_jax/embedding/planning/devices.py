"""What a planner needs to know of an accelerator: how much it holds, and how fast it moves it."""

from __future__ import annotations

import dataclasses
import math

from dlrm_jax.errors import UserError

_GB = 1e9
_US = 1e-6


@dataclasses.dataclass(frozen=True)
class Device:
    """One device among equals, by its data sheet. Bandwidths are bytes a second in one direction.

    Attributes:
        name: for people.
        memory: bytes.
        memory_bandwidth: of arrays that are read or written from end to end.
        row_bandwidth: of rows at random, whose bytes are counted in whole granules.
        granule: the bytes that memory gives at the least.
        link_bandwidth: of one device, to the others of its host.
        network_bandwidth: of one device, to other hosts.
        devices_per_host: those that the fast links join.
        latency: seconds that a collective takes besides moving its bytes.
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

    @property
    def memory_for_tables(self) -> float:
        """Bytes for tables and their optimizer state: a step's own arrays need the rest."""
        return _SHARE_FOR_TABLES * self.memory

    def row_seconds(self, nbytes: int) -> float:
        """The time in which one row of so many bytes is read at random."""
        return math.ceil(nbytes / self.granule) * self.granule / self.row_bandwidth

    def exchange_seconds(self, nbytes: float, devices: int) -> float:
        """The time of an all-to-all of neighbours.

        Args:
            nbytes: of its result on one device.
            devices: how many take part, one after the other in the order of the hosts.
        """
        near, far = self._near_and_far(1, devices)
        return nbytes * (near / self.link_bandwidth + far / self.network_bandwidth)

    def gather_seconds(self, nbytes: float, stride: int, devices: int) -> float:
        """The time of an all-gather; an all-reduce of so many bytes takes twice as long.

        Devices of one host that gather the same share the way through the network.

        Args:
            nbytes: of its result on one device.
            stride: from one device that takes part to the next, in the order of the hosts.
            devices: how many take part.
        """
        near, far = self._near_and_far(stride, devices)
        together = self._together(stride, devices)
        far_share = far / together / self.network_bandwidth
        return nbytes * ((near + far) / self.link_bandwidth * (together > 1) + far_share)

    def _together(self, stride: int, devices: int) -> int:
        """How many of those that take part lie in one host."""
        return max(1, min(devices, self.devices_per_host // stride))

    def _near_and_far(self, stride: int, devices: int) -> tuple[float, float]:
        """What share of a collective's bytes comes from the same host, and from others."""
        together = self._together(stride, devices)
        return (together - 1) / devices, (devices - together) / devices


# Gradients, exchanged vectors and the dense model take the rest.
_SHARE_FOR_TABLES = 0.75

# No data sheet gives the bandwidth of rows at random. Those of GPUs and TPUs are taken to be half
# of the streaming one; that of the CPU is what gathers of 64-byte rows from 2 GB reached.
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
    "cpu": Device("cpu", 16 * 2**30, 10 * _GB, 2.5 * _GB, 64, 5 * _GB, 1 * _GB, 8, 50 * _US),
}


def device(name: str) -> Device:
    """The device of this name.

    Raises:
        UserError: naming those that there are.
    """
    if name not in DEVICES:
        raise UserError(f"device: expected one of {', '.join(DEVICES)}, got {name!r}")
    return DEVICES[name]


def device_like(kind: str) -> Device:
    """The one that resembles what JAX calls a device's kind.

    Plans for a device that isn't known are those for an H100: right, if not the best.

    Args:
        kind: ``jax.devices()[0].device_kind``, such as ``"NVIDIA A100-SXM4-80GB"``.
    """
    kind = kind.lower()
    if "cpu" in kind:
        return DEVICES["cpu"]
    if "tpu" in kind:
        return DEVICES["tpu_v5p"]
    return DEVICES["a100"] if "a100" in kind else DEVICES["h100"]
