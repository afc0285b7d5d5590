"""Simulated steps over the number of devices, in tables and a picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from main_job import ROOT, run

from dlrm_jax.embedding.planning.devices import DEVICES
from dlrm_jax.presets import preset
from experiments.benchmarks.scaling_curves import CURVES, DEVICE_COUNTS, Curve, draw, step_ms

CONFIG = dataclasses.replace(preset("mlperf_v2"), batch_size=512 * 128)


@pytest.mark.parametrize(
    "curve",
    [CURVES[1], *(pytest.param(curve, marks=pytest.mark.thorough) for curve in CURVES[2:])],
    ids=lambda curve: curve.name,
)
def test_fully_sharded_tables_are_the_fastest_on_many_devices(curve: Curve):
    fastest = step_ms(CURVES[0], CONFIG, 128, DEVICES["h100"])
    found = step_ms(curve, CONFIG, 128, DEVICES["h100"])
    assert fastest is not None
    assert found is not None
    assert found > 1.5 * fastest


def test_columns_end_where_shards_do_not_divide_them():
    assert step_ms(Curve("column_wise", False), CONFIG, 256, DEVICES["h100"]) is None


def test_curves_end_where_devices_have_no_sample():
    config = dataclasses.replace(CONFIG, batch_size=64)
    assert step_ms(CURVES[0], config, 64, DEVICES["h100"]) is not None
    assert step_ms(CURVES[0], config, 128, DEVICES["h100"]) is None


def test_each_placement_has_a_line_in_both_pictures():
    times = [[float(n) for n in DEVICE_COUNTS[: 8 - i]] + i * [None] for i in range(len(CURVES))]
    weak, strong = draw(times, times).axes
    for axes in (weak, strong):
        found = [line.get_xdata().size for line in axes.lines]  # pyright: ignore
        assert found == [8 - i for i in range(len(CURVES))]


def test_a_curve_without_a_point_is_left_out():
    config = preset("ctr_x1")  # of ten columns
    columns = [step_ms(CURVES[-1], config, n, DEVICES["h100"]) for n in DEVICE_COUNTS]
    assert not any(columns)
    times = [[1.0] * len(DEVICE_COUNTS)] * (len(CURVES) - 1) + [columns]
    figure = draw(times, times)
    names = [curve.name for curve in CURVES[:-1]]
    for axes in figure.axes:
        assert [line.get_label() for line in axes.lines] == names


def test_a_picture_in_an_unknown_format_is_refused(tmp_path: Path):
    program = ("-m", "experiments.benchmarks.scaling")
    result = run("--output=a.gif", program=program, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert result.returncode == 2
    assert "--output: expected a file named .png or .svg" in result.stderr
