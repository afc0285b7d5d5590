"""The hit rates of caches of tables in host memory lie below those that can't be beaten."""

from __future__ import annotations

from main_job import run

PROGRAM = ("-m", "experiments.benchmarks.host_tables")


def test_no_cache_is_better_than_one_that_knows_all_batches():
    flags = ("--rows=3000", "--batch_size=64", "--batches=200", "--exponents=0.6,1.1")
    done = run(*flags, "--shares=0.01,0.05,0.3", "--half_lives=0.5,64,4096", program=PROGRAM)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()[1:]]
    assert [line[:2] for line in lines] == [
        [exponent, cache] for exponent in ("0.6", "1.1") for cache in ("150", "900")
    ]  # a cache of 30 rows doesn't hold a batch
    for line in lines:
        lru, _, lfu, most_read, belady = map(float, line[3:8])
        assert lru < lfu < belady
        assert abs(lfu - most_read) < 0.1
        assert int(line[8].replace(",", "")) > 0
