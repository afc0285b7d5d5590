"""Devices as a planner sees them: links, rows, and names."""

from __future__ import annotations

import pytest

from dlrm_jax.embedding.planning.devices import DEVICES, device, device_like
from dlrm_jax.errors import UserError


def test_links_of_a_host_are_faster_than_the_network():
    h100 = DEVICES["h100"]
    assert h100.exchange_seconds(450e9, 8) == pytest.approx(7 / 8)
    assert h100.exchange_seconds(50e9, 16) == pytest.approx(8 / 16 + 7 / 16 / 9)
    # Copies one host apart each fetch what is theirs; eight of a host share the way.
    assert h100.gather_seconds(50e9, 8, 2) == pytest.approx(1 / 2)
    assert h100.gather_seconds(50e9, 1, 16) == pytest.approx(1 / 2 / 8 + 15 / 16 / 9)
    assert h100.row_seconds(65) == pytest.approx(128 / h100.row_bandwidth)


def test_devices_by_name_and_by_kind():
    assert device("a100") is DEVICES["a100"]
    with pytest.raises(UserError, match=r"device: expected one of h100, .*, got 'h101'"):
        device("h101")
    kinds = {"cpu": "cpu", "NVIDIA A100-SXM4-80GB": "a100", "TPU v5": "tpu_v5p", "MI300X": "h100"}
    for kind, name in kinds.items():
        assert device_like(kind).name == name
