"""The library under a retrieval model."""

from __future__ import annotations

import re

import pytest
from main_job import run

PROGRAM = ("-m", "experiments.two_tower")
SMALL = ("--users=4000", "--items=600", "--batch_size=512", "--steps=100", "--recall_at=10")


def measured(mesh: str) -> tuple[float, dict[str, float]]:
    result = run(f"--mesh={mesh}", *SMALL, program=PROGRAM)
    assert result.returncode == 0, result.stderr[-2000:]
    loss = re.search(r"^loss ([0-9.]+),", result.stdout, re.MULTILINE)
    assert loss is not None
    near = re.findall(r"^nearest to item \d+: \d+(?:, \d+){4}$", result.stdout, re.MULTILINE)
    assert len(near) == 3
    rows = re.findall(r"^(model|most popular|planted taste) +([0-9.]+)$", result.stdout, re.M)
    return float(loss[1]), {name: float(share) for name, share in rows}


def test_it_finds_what_users_choose_and_on_every_mesh_alike():
    loss, recall = measured("2x4")
    assert 3 * recall["most popular"] < recall["model"] < recall["planted taste"]
    loss_on_one_device, recall_on_one_device = measured("1x1")
    # Rounding grows: after fifty steps it is in the fifth digit, after a hundred in the fourth.
    assert loss == pytest.approx(loss_on_one_device, abs=5e-3)
    assert recall["model"] == pytest.approx(recall_on_one_device["model"], abs=1e-2)


def test_more_items_are_asked_for_than_there_are():
    result = run("--items=100", program=PROGRAM)
    assert result.returncode == 2, result.stderr[-2000:]
    assert result.stderr == (
        "error: --recall_at: 100 is more than the 89 ranked items: --items=100 without "
        "11 known items\n"
    )


def test_all_items_are_known_of_a_user():
    result = run("--items=11", program=PROGRAM)
    assert result.returncode == 2, result.stderr[-2000:]
    assert result.stderr == (
        "error: --items: expected an integer of at least 12, got '11'; such as --items=1000\n"
    )
