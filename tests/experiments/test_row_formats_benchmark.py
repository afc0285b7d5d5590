"""The AUC that row formats keep: a row for each job and format, whose figures fit each other."""

from __future__ import annotations

import itertools

import pytest
from main_job import run

PROGRAM = ("-m", "experiments.benchmarks.row_formats")


@pytest.mark.thorough
def test_a_table():
    done = run("--examples=4000", program=PROGRAM)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [x for x in done.stdout.splitlines() if x.startswith("| ")]
    header, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert header[:2] == ["job", "row format"]
    for job, own in itertools.groupby(rows, lambda row: row[0]):
        names, sizes, _, aucs, shares = zip(*(row[1:] for row in own), strict=True)
        assert names == ("float32", "bfloat16", "int8", "int4"), job
        assert sorted(map(float, sizes), reverse=True) == [*map(float, sizes)]
        found = [float(share.removesuffix(" %")) for share in shares]
        assert found == pytest.approx([100 * float(x) / float(aucs[0]) for x in aucs], abs=0.01)
        assert min(found) > 99
    assert [job for job, _ in itertools.groupby(row[0] for row in rows)] == [
        "main", "criteo", "clicks",
    ]  # fmt: skip
    done = run("--jobs=main,other", program=PROGRAM)
    assert done.returncode == 2
    assert "--jobs: expected some of main, criteo, clicks, got 'other'" in done.stderr
