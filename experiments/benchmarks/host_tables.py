"""Hit rates of caches of tables in host memory, beside the best possible ones.

    python -m experiments.benchmarks.host_tables --rows=1000000 --batch_size=8192

Each batch reads one id a sample, by Zipf's law, and a cache has a share of the rows. A hit rate is
that of the different rows of a batch, as a row is moved once however often the batch reads it, over
the second half of the batches. Columns:

- a number: the scores of `host_tables.replacement` with this half-life in batches; 0.5 orders rows
  by their last read, as LRU does;
- ``most read``: a cache of the rows that are read most, as the law says, which never changes;
- ``Belady``: a cache that knows all later batches, and lets go of the row that is read last. None
  that fetches rows for one batch at a time does better;
- ``bytes``: values with optimizer state of row-wise Adagrad that move to the devices, and as many
  back, in a step with the half-life that is used, padding not counted.

With ``--drift``, popular ids lose their place to others: as many in each batch.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

import numpy as np
from absl import flags
from jaxtyping import Int32

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from dlrm_jax.data.generated.zipf import bounded_zipf, cumulative_zipf
from dlrm_jax.host_tables.cache_map import CacheMap
from dlrm_jax.host_tables.replacement import HALF_LIFE
from dlrm_jax.text_table import text_table

flags.DEFINE_integer("rows", 1_000_000, "Rows of the table; such as 100000.", 2)
flags.DEFINE_integer("dim", 64, "Width of the rows, in numbers; such as 128.", 1)
flags.DEFINE_integer("batch_size", 8192, "Ids of a batch; such as 2048.", 1)
flags.DEFINE_integer("batches", 200, "Batches, of which the second half counts.", 2)
flags.DEFINE_list("exponents", "0.6,0.8,1.05,1.2", "Exponents of Zipf's law.")
flags.DEFINE_list("shares", "0.01,0.05,0.2", "Shares of the rows that a cache has.")
flags.DEFINE_list("half_lives", f"0.5,{HALF_LIFE}", "Half-lives in batches.")
flags.DEFINE_integer("drift", 0, "Ids of a batch that lose their place; such as 50.", 0)
flags.DEFINE_integer("seed", 1, "Seed of the ids.", 0)

Batch = Int32[np.ndarray, " B"]


def main() -> None:
    """A table of hit rates by exponent and cache."""
    lives = [float(x) for x in FLAGS.half_lives]
    header = ["Zipf", "cache", "rows of a batch", *map("{:g}".format, lives), "most read", "Belady"]
    lines = []
    row_bytes = 4 * (FLAGS.dim + 1)
    for exponent in map(float, FLAGS.exponents):
        batches = [*drawn(exponent)]
        distinct = float(np.mean([len(np.unique(x)) for x in batches[len(batches) // 2 :]]))
        for share in map(float, FLAGS.shares):
            cache = int(FLAGS.rows * share)
            if any(len(np.unique(x)) > cache for x in batches):
                continue  # a cache holds all that a batch reads
            found = [missed(batches, cache, life) for life in lives]
            shown = [1 - x / distinct for x in found]
            shown.append(most_read(exponent, cache))
            shown.append(1 - missed_by_belady(batches, cache) / distinct)
            used = found[lives.index(HALF_LIFE)] if HALF_LIFE in lives else found[-1]
            lines.append(
                [
                    f"{exponent:g}",
                    f"{cache:,}",
                    f"{distinct:,.0f}",
                    *(f"{x:.3f}" for x in shown),
                    f"{used * row_bytes:,.0f}",
                ]
            )
    print(text_table([*header, "bytes"], lines))


def drawn(exponent: float) -> Iterable[Batch]:
    """The ids of each batch."""
    rng = np.random.default_rng(FLAGS.seed)
    ids = rng.permutation(FLAGS.rows).astype(np.int32)  # by rank
    for _ in range(FLAGS.batches):
        ranks = bounded_zipf(rng, FLAGS.rows, exponent, (FLAGS.batch_size,)).astype(np.int64)
        yield ids[ranks]
        losing = np.unique(ranks[: FLAGS.drift])
        others = rng.integers(0, FLAGS.rows, len(losing))
        for one, other in zip(losing, others, strict=True):
            ids[[one, other]] = ids[[other, one]]


def missed(batches: Sequence[Batch], cache: int, half_life: float) -> float:
    """Rows of a batch that aren't in the cache, on average over the second half."""
    own = CacheMap("table", FLAGS.rows, np.arange(cache, dtype=np.int32), half_life=half_life)
    counts = [len(own.exchange(i, ids).coming) for i, ids in enumerate(batches)]
    return float(np.mean(counts[len(counts) // 2 :]))


def most_read(exponent: float, cache: int) -> float:
    """The hit rate of a cache of the rows of the lowest ranks, expected by the law."""
    chances = np.diff(cumulative_zipf(np.arange(FLAGS.rows + 1), FLAGS.rows, exponent))
    read = -np.expm1(FLAGS.batch_size * np.log1p(-chances))  # at least once in a batch
    return float(read[:cache].sum() / read.sum())


def missed_by_belady(batches: Sequence[Batch], cache: int) -> float:
    """As `missed`, of a cache that knows the next batch that reads each row."""
    never = len(batches)
    own = [np.unique(ids) for ids in batches]
    following = np.full(FLAGS.rows, never)
    later = []
    for number in range(never - 1, -1, -1):
        later.append(following[own[number]])
        following[own[number]] = number
    later.reverse()
    cached = np.zeros(FLAGS.rows, bool)
    cached[:cache] = True
    heap = [(-int(following[row]), row) for row in range(cache)]
    heapq.heapify(heap)
    counts = []
    for rows, after in zip(own, later, strict=True):
        coming = rows[~cached[rows]]
        counts.append(len(coming))
        following[rows] = never + 1  # of this batch: no entry is its own until the next one
        for _ in coming:
            while True:
                negative, row = heapq.heappop(heap)
                if cached[row] and following[row] == -negative:
                    break
            cached[row] = False
        cached[coming] = True
        following[rows] = after
        for entry in zip((-after).tolist(), rows.tolist(), strict=True):
            heapq.heappush(heap, entry)
    return float(np.mean(counts[never // 2 :]))


if __name__ == "__main__":
    run(main)
