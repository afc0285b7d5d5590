"""A soak counts wrong answers, and a server that is well survives one."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from experiments.campaigns.soak_clients import GONE, GOOD, MALFORMED
from experiments.campaigns.soak_requests import Request, http_post, malformed
from experiments.campaigns.soak_server import DAMAGED, LOG, MEMORY, SWAPPED, Soak
from experiments.campaigns.tally import Tally

EXPECTED = [np.array([0.25]), np.array([0.5])]


def artifact_of(version: int) -> int:
    return version % 2


@pytest.mark.parametrize(
    ("version", "found", "problem"),
    [
        (1, 0.5, ""),
        (3, 0.5 + 1e-7, ""),
        (None, 0.25, ""),
        (2, 0.5, "version 2: expected one of"),
        (None, 0.3, "version None: expected one of"),
    ],
)
def test_answers_are_those_of_their_version(version: int | None, found: float, problem: str):
    request = Request(b"", EXPECTED, lambda _: (version, np.array([found])))
    assert request.problem(200, b"", artifact_of).startswith(problem)
    assert bool(request.problem(200, b"", artifact_of)) == bool(problem)
    assert request.problem(503, b"full", artifact_of).startswith("status 503: b'full'")


def test_malformed_bodies_have_their_length():
    request = Request(
        http_post("/predict", b'{"rows": [{"a": 1}]}', "X: 12"), [], lambda _: (0, EXPECTED[0])
    )
    bodies = set()
    for i in range(20):
        head, _, body = malformed(request, random.Random(i)).partition(b"\r\n\r\n")
        assert head.startswith(b"POST /predict HTTP/1.1\r\n")
        assert f"Content-Length: {len(body)}\r\n".encode() in head + b"\r\n"
        bodies.add(body)
    assert len(bodies) > 10


@pytest.mark.thorough
def test_a_soak_of_seconds(tmp_path: Path):
    from experiments.campaigns.served_versions import make_artifacts

    tally = Tally("soak", seed=0, minutes=1)
    artifacts = make_artifacts(tmp_path / "model")
    soak = Soak(tally, artifacts, tmp_path, count=20, load=0.3, swap_seconds=1)
    soak.run(5)
    tried = {name: case.tried for name, case in tally._cases.items()}
    assert {GOOD, MALFORMED, GONE, SWAPPED, DAMAGED, MEMORY, LOG} <= set(tried)
    lost = {name: case.lost for name, case in tally._cases.items() if name != MEMORY}
    assert not any(lost.values()), lost
