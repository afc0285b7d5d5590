"""The program of two towers, on choices whose best possible recall is known."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from main_job import run

PROGRAM = ("-m", "experiments.two_tower")
SMALL = ("--users=4000", "--items=600", "--batch_size=512", "--steps=100", "--recall_at=10")


@pytest.mark.thorough
def test_it_finds_what_users_choose(tmp_path: Path):
    result = run("--mesh=1x1", *SMALL, f"--workdir={tmp_path / 'w'}", program=PROGRAM)
    assert result.returncode == 0, result.stderr[-2000:]
    near = re.findall(r"^nearest to item \d+: \d+(?:, \d+){4}$", result.stdout, re.MULTILINE)
    assert len(near) == 3
    rows = re.findall(r"^(model|popularity|planted taste) +([0-9.]+)", result.stdout, re.M)
    recall = {name: float(share) for name, share in rows}
    assert 3 * recall["popularity"] < recall["model"] < recall["planted taste"]
    summary = json.loads((tmp_path / "w" / "summary.json").read_text())
    assert f"{summary['test']['model']['recall@10']:.4f}" == f"{recall['model']:.4f}"


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
