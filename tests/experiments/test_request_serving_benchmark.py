"""The benchmark of a server of requests prints a row for each way of asking."""

from __future__ import annotations

import pytest
from main_job import run

PROGRAM = ("-m", "experiments.benchmarks.request_serving")


@pytest.mark.thorough
def test_rows():
    sizes = ("--items=100", "--width=8", "--length=20", "--candidates=4")
    flags = ("--encoder=mean", *sizes, "--connections=2", "--seconds=0.3")
    done = run(*flags, program=PROGRAM)
    assert done.returncode == 0, done.stderr[-2000:]
    _, head, *rows = done.stdout.splitlines()
    assert head.split()[:3] == ["requests", "candidates", "actions"]
    names, numbers = zip(*((x[:12].strip(), x.split()[-6:]) for x in rows), strict=True)
    assert names == ("all at once", "one by one", "short")
    assert [x[:3] for x in numbers] == [["4", "20", "2"], ["4", "20", "2"], ["10", "30", "2"]]
    assert all(float(x[3]) > 0 for x in numbers)
