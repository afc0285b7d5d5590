"""Steps of sequences and of requests, compiled for devices that aren't there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from main_job import run

from dlrm_jax.targets import lacks

SMALL = {
    "next_item": (
        "--users=40", "--items=30", "--longest=20", "--at=10", "--batch_size=8", "--width=8",
        "--negatives=16",
    ),
    "long_history": (
        "--requests=40", "--longest=16", "--max_length=16", "--batch_size=8", "--width=4",
        "--mlp=8",
    ),
}  # fmt: skip
KERNEL = {"h100": "call of __gpu$xla.gpu.triton", "tpu_v5e": "call of tpu_custom_call"}


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("next_item", ["--json=x.json"], "--json has no effect without --target"),
        ("next_item", ["--target=h100", "--workdir=x"], "--workdir has no effect with --target"),
        ("next_item", ["--target=h100", "--emulate"], "--emulate: expected none with --target"),
        ("next_item", ["--target=v100"], "--target: expected one of a100,"),
        ("long_history", ["--json=x.json"], "--json has no effect without --target"),
        ("long_history", ["--target=h100", "--export=x"], "--export has no effect with --target"),
        ("long_history", ["--target=h100", "--workdir=x"], "--workdir has no effect with --target"),
    ],
)
def test_flags_that_nothing_would_read(name: str, flags: list[str], words: str):
    result = run(*flags, program=("-m", f"experiments.{name}"))
    assert result.returncode == 2
    assert words in result.stderr


@pytest.mark.parametrize("target", ["h100", "tpu_v5e"])
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.thorough
def test_a_step_of_sequences_for_a_target(name: str, target: str, tmp_path: Path):
    if missing := lacks(target):
        pytest.skip(missing)
    kept = tmp_path / "step.json"
    flags = *SMALL[name], "--encoder=hstu", "--layers=1", f"--target={target}:2", "--mesh=1x2"
    result = run(*flags, f"--json={kept}", program=("-m", f"experiments.{name}"), cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(kept.read_text(encoding="utf-8"))
    assert found["not_updated_in_place"] == []
    kernels = found["kernels"]["once"]
    assert kernels["product"] > 5
    if name == "next_item":
        assert kernels[KERNEL[target]] >= 2  # the attention, forward and backward
    assert list(tmp_path.iterdir()) == [kept]  # nothing is trained
