"""The benchmark of id maps prints a rate for each run."""

from main_job import run

PROGRAM = ("-m", "experiments.benchmarks.id_map")
FLAGS = ("--rows=300", "--batch=64", "--batches=2", "--rounds=1", "--born=0.5", "--admit_count=2")


def test_all_rates_are_there():
    done = run(*FLAGS, program=PROGRAM)
    assert done.returncode == 0, done.stderr[-2000:]
    first, header, *rows, last = done.stdout.splitlines()
    assert first.startswith("300 ids got a row in ")
    assert "37.0 bytes a live id" in first
    assert header.split() == ["million", "ids", "a", "second", "median", "least", "most"]
    rates = {row.rsplit(None, 3)[0]: float(row.rsplit(None, 3)[1]) for row in rows}
    assert rates.keys() == {
        *(f"{x}, {y}" for x in ("known", "births") for y in ("all tables", "one table")),
        *("known, find", "known, dict"),
    }
    assert last.endswith("ids of one table were evicted in the rounds")
