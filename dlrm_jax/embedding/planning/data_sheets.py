"""Data sheets of accelerators, and the shares of them that programs reach."""

from __future__ import annotations

from typing import NamedTuple

from dlrm_jax.embedding.planning.torus import Torus


class Sheet(NamedTuple):
    """The data sheet of a device. Sizes and bandwidths are in 10⁹ bytes, speeds in 10¹² FLOP/s.

    Attributes:
        memory: size of the memory.
        bandwidth: bandwidth of the memory.
        link: bandwidth from a device to the others of its host, in one direction.
        network: bandwidth from a device to other hosts, in one direction.
        devices_per_host: number of devices that the fast links join.
        flops32: speed of dense matrix products of float32.
        flops: speed of products whose factors are rounded to TF32.
        flops16: speed of dense matrix products of bfloat16.
        torus: axes of the links; None for a switch, over which a device reaches any other one.
    """

    memory: float
    bandwidth: float
    link: float
    network: float
    devices_per_host: int
    flops32: float
    flops: float
    flops16: float
    torus: Torus | None = None


class Reached(NamedTuple):
    """What programs reach of a data sheet.

    Attributes:
        bandwidth: share of the memory's bandwidth, for arrays read or written from end to end.
        rows: share of it for rows at random.
        link: share of the links' bandwidth.
        network: share of the network's bandwidth.
        products: share of the speed of matrix products.
        latency: seconds of a collective besides moving its bytes.
        launch: seconds of a kernel besides its work.
        granule: size of the smallest memory access, in bytes.
        tiled: whether memory has tiles, see `tpu_layout`.
    """

    bandwidth: float
    rows: float
    link: float
    network: float
    products: float
    latency: float
    launch: float
    granule: int
    tiled: bool = False


# NVIDIA: data sheets of A100, H100 and H200 SXM, without sparsity. They
# count NVLink in both directions: 600 and 900 GB/s. DGX A100 has an adapter of 200 Gb/s a GPU,
# DGX H100 and later ones have 400 Gb/s. B200: the data sheet of DGX B200, divided by its eight
# GPUs. GB200: that of GB200 NVL72, whose NVLink joins 72 GPUs.
# AMD: data sheet of the MI300X: 896 GB/s of Infinity Fabric to seven others in both directions.
# Google Cloud's pages docs.cloud.google.com/tpu/docs/v4, v5e, v5p and v6e: links of 400, 1,200 and
# 800 GB/s of v5e, v5p and v6e in both directions and, in an older version, 2,400 Gb/s of v4. They
# join a slice. The network of a data centre joins slices: 50 Gb/s a chip of v5p, taken for v4, too;
# for a host of eight chips of v5e 2 x 100 Gb/s, and of v6e 4 x 200. Products of float32 are
# sums of six products of bfloat16 there, and JAX takes three where GPUs take TF32.
_SQUARE = Torus(axes=2, ring=16, of_cubes=False)
_CUBES = Torus(axes=3, ring=4, of_cubes=True)
SHEETS = {
    "a100": Sheet(80, 2039, 300, 25, 8, 19.5, 156, 312),
    "h100": Sheet(80, 3350, 450, 50, 8, 66.9, 494.7, 989.4),
    "h200": Sheet(141, 4800, 450, 50, 8, 66.9, 494.7, 989.4),
    "b200": Sheet(180, 8000, 900, 50, 8, 75, 1125, 2250),
    "gb200": Sheet(186, 8000, 900, 50, 72, 80, 1250, 2500),
    "mi300x": Sheet(192, 5300, 448, 50, 8, 163.4, 653.7, 1307.4),
    "tpu_v4": Sheet(34.4, 1200, 300, 6.25, 4096, 275 / 6, 275 / 3, 275, _CUBES),
    "tpu_v5e": Sheet(17.2, 819, 200, 3.125, 256, 197 / 6, 197 / 3, 197, _SQUARE),
    "tpu_v5p": Sheet(102, 2765, 600, 6.25, 6144, 459 / 6, 459 / 3, 459, _CUBES),
    "tpu_v6e": Sheet(34.4, 1638, 400, 12.5, 256, 918 / 6, 918 / 3, 918, _SQUARE),
}

# NVLink: 370 of 450 GB/s, by NVIDIA's sjeaugey in NVIDIA/nccl-tests#212. Network: 48 of 50 GB/s, by
# NVIDIA's AddyLaddy in NVIDIA/nccl-tests#267. Latency: NCCL's own estimate for 128 bytes between
# hosts, as printed in NVIDIA/nccl#1453. Memory: assumed; published runs hardly tell 0.6 for rows
# from 0.9. Products and launch: fitted by experiments.benchmarks.published_runs; docs/scaling.md
# has the errors.
GPU = Reached(
    bandwidth=0.9,
    rows=0.6,
    link=0.82,
    network=0.96,
    products=0.71,
    latency=25e-6,
    launch=4.2e-6,
    granule=64,
)
# No published runs of these tables on TPUs were found. The shares are those of GPUs; kernels are
# parts of one program, which starts once. Memory is read in tiles.
TPU = GPU._replace(latency=5e-6, launch=1e-6, granule=4096, tiled=True)


def reached(name: str) -> Reached:
    """What programs reach of the data sheet of this name."""
    return TPU if name.startswith("tpu") else GPU
