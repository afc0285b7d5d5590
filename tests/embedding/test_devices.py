"""Devices as a planner sees them: links, rows, and names."""

from __future__ import annotations

import dataclasses

import pytest

from dlrm_jax.embedding.planning import tpu_layout
from dlrm_jax.embedding.planning.data_sheets import SHEETS, reached
from dlrm_jax.embedding.planning.devices import DEVICES, Device, device, device_like
from dlrm_jax.errors import UserError

# NVIDIA's H100 as in its data sheet.
H100 = dataclasses.replace(DEVICES["h100"], link_bandwidth=450e9, network_bandwidth=50e9)


def test_links_of_a_host_are_faster_than_the_network():
    exchange = H100.exchange(50e9, 16)
    assert H100.exchange(450e9, 8).host == pytest.approx(7 / 8)
    assert (exchange.host, exchange.network) == pytest.approx((7 / 16 / 9, 8 / 16))
    # Copies one host apart each fetch what is theirs; eight of a host share the way.
    gather = H100.gather(50e9, 8, 2)
    assert (gather.host, gather.network) == pytest.approx((0, 1 / 2))
    gather = H100.gather(50e9, 1, 16)
    assert (gather.host, gather.network) == pytest.approx((15 / 16 / 9, 1 / 2 / 8))
    assert H100.row_seconds(65, 1) == pytest.approx(128 / H100.row_bandwidth)


def test_switches_that_add_up_gradients_halve_what_the_network_carries():
    ring, in_network = (H100.all_reduce(64e6, 1, 128, flag) for flag in (False, True))
    half = H100.gather(64e6, 1, 128)
    assert ring == half + half
    assert in_network.host == ring.host
    assert in_network.network == ring.network / 2


def test_devices_reach_a_share_of_their_data_sheets():
    for name, sheet in SHEETS.items():
        share, found = reached(name), DEVICES[name]
        assert found.memory_bandwidth == pytest.approx(1e9 * sheet.bandwidth * share.bandwidth)
        assert found.row_bandwidth < found.memory_bandwidth < 1e9 * sheet.bandwidth
        assert found.network_bandwidth < found.link_bandwidth < found.memory_bandwidth
        assert found.flops <= found.flops16 == pytest.approx(1e12 * sheet.flops16 * share.products)
        assert Device.of(name, sheet, share) == found


def test_devices_by_name_and_by_kind():
    assert device("a100") is DEVICES["a100"]
    with pytest.raises(UserError, match=r"device: expected one of a100, .*, got 'h101'"):
        device("h101")
    kinds = {
        "cpu": "cpu", "NVIDIA A100-SXM4-80GB": "a100", "NVIDIA H200": "h200", "NVIDIA B200": "b200",
        "NVIDIA GB200": "gb200", "AMD Instinct MI300X": "mi300x", "TPU v4": "tpu_v4",
        "TPU v5": "tpu_v5p", "TPU v5 lite": "tpu_v5e", "TPU v6 lite": "tpu_v6e",
        "NVIDIA H100 80GB HBM3": "h100",
    }  # fmt: skip
    for kind, name in kinds.items():
        assert device_like(kind) == DEVICES[name]


@pytest.mark.parametrize(("kind", "name"), [("X9", "h100"), ("TPU v9", "tpu_v5e")])
def test_an_unknown_kind_is_named(kind: str, name: str):
    with pytest.warns(UserWarning, match=rf"no data sheet of '{kind}' and plans for {name}"):
        assert device_like(kind) == DEVICES[name]


def test_bytes_on_a_torus_pass_other_chips():
    # Links of 50 GB/s: a 16 x 16 torus of TPU v5e has 1.6 TB/s in its middle (Google's data sheet),
    # over which half of the bytes of 128 chips go to the other 128.
    link = 50e9
    v5e = dataclasses.replace(DEVICES["tpu_v5e"], link_bandwidth=4 * link)
    assert v5e.exchange(1e9, 256).host == pytest.approx(128 * 0.5e9 / 1.6e12)
    assert v5e.exchange(1e9, 2).host == pytest.approx(0.5e9 / link)
    # Lines of four chips, as blocks of 2 x 4 and as the longer axis of groups at a distance.
    assert v5e.exchange(1e9, 8).host == v5e.exchange(1e9, 2, 4).host == pytest.approx(1e9 / link)
    assert v5e.exchange(1e9, 8, 256).host == 0  # other slices, over the network
    # Rings receive from both sides, on both axes; a line of two chips over one link.
    assert v5e.gather(1e9, 1, 256).host == pytest.approx(255 / 256 * 1e9 / (4 * link))
    assert v5e.gather(1e9, 1, 2).host == pytest.approx(0.5e9 / link)
    assert v5e.gather(1e9, 16, 8).host == pytest.approx(7 / 8 * 2e9 / (2 * link))


def test_rows_on_a_tpu_have_tiles_and_padding():
    # As programs compiled for a v5e have them: 2^20 x 10 float32 numbers took 67 MB.
    tpu, gpu = DEVICES["tpu_v5e"], DEVICES["h100"]
    stored = [tpu.stored_bytes(width, 4) for width in (1, 3, 4, 10, 16, 48, 50, 64, 96, 128, 160)]
    assert stored == [4, 16, 16, 64, 64, 192, 256, 256, 512, 512, 1024]
    # Tables of few rows for each id are copied.
    assert tpu_layout.copied_width(16, 44_047, 13_312) == 128
    assert tpu_layout.copied_width(16, 4_220_323, 53_248) == 0
    for width in (1, 64, 96, 128):
        assert tpu_layout.copied_width(width, 10, 1000) == 0
    assert gpu.stored_bytes(10, 4) == 40
    # One tile of a row of 128 or of a packed one, sixteen of a narrow one, and one of a row's own
    # number.
    tile = tpu.row_seconds(128, 4)
    assert tile == pytest.approx(4096 / tpu.row_bandwidth)
    assert tpu.row_seconds(16, 4) == tpu.row_seconds(48, 4) == pytest.approx(16 * tile)
    assert tpu.row_seconds(64, 4) == tpu.row_seconds(96, 4) == tile
    assert tpu.row_seconds(1, 4) == tile
    assert tpu.row_seconds(256, 2) == pytest.approx(tile)


def test_rings_of_tpus():
    square, cubes = SHEETS["tpu_v6e"].torus, SHEETS["tpu_v5p"].torus
    assert square
    assert cubes
    assert [square.shape(chips) for chips in (1, 2, 8, 100)] == [(1, 1), (1, 2), (2, 4), (8, 16)]
    assert square.directions((8, 16)) == (1, 2)
    assert cubes.directions((2, 2, 4)) == (1, 1, 1)
    assert cubes.directions((4, 4, 8)) == (2, 2, 2)
    assert cubes.directions((1, 2, 2)) == (0, 1, 1)


@pytest.mark.parametrize(
    ("kind", "name", "gigabytes"),
    [
        ("NVIDIA A100-SXM4-40GB", "a100", 40),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "a100", 5),
        ("Tesla V100-SXM2-16GB", "h100", 16),
        ("NVIDIA GH200 480GB", "h100", 80),  # 480 GB belong to its CPU
        ("NVIDIA GH200 144G HBM3e", "h100", 80),
    ],
)
@pytest.mark.filterwarnings("ignore:the planner has no data sheet of 'Tesla")
def test_a_device_has_no_more_memory_than_its_kind_names(kind: str, name: str, gigabytes: int):
    assert device_like(kind) == dataclasses.replace(DEVICES[name], memory=gigabytes * 10**9)
