"""Times maps of dynamic ids to rows: a skewed stream of known ids, and one with births.

    python -m experiments.benchmarks.id_map --rows=10000000

``known`` are ids by Zipf's law, all of which have a row. ``births`` has ``--born`` new ids among
them, each of which takes the row of another id, as the table is full. ``find`` looks the known ids
up without a change. ``all tables`` run on all processors, a table each at a time; ``one table`` has
one thread. ``dict`` is the least that plain Python can do, a dict and lists of counts and times, on
known ids.

``--torchrec`` adds TorchRec's MCHManagedCollisionModule with the same policy, one table on all
processors, in its own environment (see `experiments.benchmarks.peers`). It takes new ids in every
``--interval`` batches, which should divide ``--batches``, ours every batch.

All run in turn, round by round; figures are million ids a second. With ``--processor_time``,
seconds are those in which a thread computes, which other programs disturb less: those of ``all
tables`` and of TorchRec count each processor's.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.run import run
from dlrm_jax.data.generated.zipf import bounded_zipf
from dlrm_jax.dynamic_ids.id_map import IdMap, translate_all
from dlrm_jax.dynamic_ids.policy import EVICTIONS, DynamicIds
from dlrm_jax.files import cache_directory
from dlrm_jax.native import library
from dlrm_jax.text_table import text_table
from experiments.benchmarks.peers import environment
from experiments.benchmarks.peers.contestant import Contestant, Worker
from experiments.benchmarks.timing import in_turn

flags.DEFINE_integer("rows", 1_000_000, "Ids that have a row; such as 10000000.", 1)
flags.DEFINE_integer("tables", 2, "Tables that are timed together; such as 26.", 1)
flags.DEFINE_integer("batch", 65536, "Ids of a batch of a table; such as 2048.", 1)
flags.DEFINE_integer("batches", 16, "Batches of a round; such as 100.", 1)
flags.DEFINE_integer("rounds", 5, "Rounds; such as 9.", 1)
flags.DEFINE_float("zipf", 1.05, "Exponent of Zipf's law; such as 0.", 0)
flags.DEFINE_float("born", 0.02, "Share of new ids in the stream with births; such as 0.1.", 0, 1)
flags.DEFINE_enum("evict", "lru", EVICTIONS, "Ids that lose their rows first.")
flags.DEFINE_integer("admit_count", 1, "Times that an id must be seen; such as 2.", 1, 255)
flags.DEFINE_bool("torchrec", False, "Also times TorchRec; its packages are installed first.")
flags.DEFINE_integer("interval", 16, "Batches between TorchRec's updates; such as 1.", 1)
flags.DEFINE_bool("processor_time", False, "Counts the seconds of processors instead of all.")

Batches = Sequence[np.ndarray]


def spread(ids: np.ndarray) -> np.ndarray:
    """Different ids all over 62 bits; TorchRec's are signed, and the last one means none."""
    spreading = np.uint64(0x9E3779B97F4A7C15)
    return (ids.astype(np.uint64) * spreading & np.uint64(2**62 - 1)).astype(np.int64)


class Stream:
    """Batches of ids, the same for all contestants."""

    def __init__(self, seed: int):
        self._rng, self._born = np.random.default_rng(seed), FLAGS.rows

    def fill(self) -> Batches:
        """All ids once, as often as they must be seen."""
        ids = spread(self._rng.permutation(FLAGS.rows))
        batches = [ids[i : i + FLAGS.batch] for i in range(0, len(ids), FLAGS.batch)]
        return [np.tile(x, FLAGS.admit_count) for x in batches]

    def known(self) -> Batches:
        """Ids that have a row."""
        shape = FLAGS.batches, FLAGS.batch
        return list(spread(bounded_zipf(self._rng, FLAGS.rows, FLAGS.zipf, shape)))

    def births(self) -> Batches:
        """The same with new ids among them."""
        batches = np.stack(self.known())
        born = self._rng.random(batches.shape) < FLAGS.born
        batches[born] = spread(self._born + np.arange(np.count_nonzero(born)))
        self._born += np.count_nonzero(born)
        return list(batches)


class Ours:
    """Our maps, each of which sees the same batches."""

    def __init__(self, tables: int):
        policy = DynamicIds(admit_count=FLAGS.admit_count, evict=FLAGS.evict)
        self.maps = [IdMap(FLAGS.rows + 1, policy, seed) for seed in range(tables)]
        self.evicted, self._now = 0, 0

    def translate(self, batches: Batches) -> None:
        """Rows for all ids."""
        for batch in batches:
            self._now += 1
            live = self.maps[0].live
            found = translate_all(self.maps, [batch] * len(self.maps), self._now)
            self.evicted += live + len(found[0].fresh) - self.maps[0].live

    def find(self, batches: Batches) -> None:
        """Rows of the ids that have one."""
        for batch in batches:
            self.maps[0].find(batch)


class InDict:
    """A dict, and lists of counts and times; nothing is ever evicted."""

    def __init__(self):
        self._rows: dict[int, int] = {}
        self._counts, self._seen, self._now = [], [], 0

    def translate(self, batches: Batches) -> None:
        """Rows for all ids."""
        for batch in batches:
            self._now += 1
            rows = np.empty(len(batch), np.int32)
            for i, key in enumerate(batch.tolist()):
                row = self._rows.get(key)
                if row is None:
                    row = self._rows[key] = len(self._counts)
                    self._counts.append(0)
                    self._seen.append(0)
                self._counts[row] += 1
                self._seen[row] = self._now
                rows[i] = row


class TorchRec:
    """TorchRec's module in its process."""

    def __init__(self, peer: Contestant, directory: Path):
        self._peer, self._path = peer, directory / "ids.npy"
        request = {"rows": FLAGS.rows + 1, "interval": FLAGS.interval, "evict": FLAGS.evict}
        self.versions = peer.ask("build", **request)

    def translate(self, batches: Batches) -> dict[str, Any]:
        """Rows for all ids: the seconds, and the share of ids that had a row."""
        np.save(self._path, np.concatenate(batches))
        return self._peer.ask("run", ids=str(self._path), batch=len(batches[0]))


def million_ids(act: Callable[[Batches], None], draw: Callable[[], Batches], tables: int) -> float:
    """Million ids a second in one round."""
    batches = draw()
    clock = time.process_time if FLAGS.processor_time else time.perf_counter
    begun = clock()
    act(batches)
    return 1e-6 * tables * sum(map(len, batches)) / (clock() - begun)


def torchrec_ids(peer: TorchRec, draw: Callable[[], Batches], shares: list[float]) -> float:
    """Million ids a second in one round."""
    batches = draw()
    answer = peer.translate(batches)
    shares.append(answer["share"])
    seconds = answer["processor_seconds" if FLAGS.processor_time else "seconds"]
    return 1e-6 * sum(map(len, batches)) / seconds


def main() -> None:
    """Fills the maps and prints the rates."""
    one, together, in_dict, stream = Ours(1), Ours(FLAGS.tables), InDict(), Stream(0)
    shares: list[float] = []
    with ExitStack() as stack:
        runs: dict[str, Callable[[], float]] = {}
        for name, draw in (("known", stream.known), ("births", stream.births)):
            timed = functools.partial(million_ids, draw=draw)
            tables = FLAGS.tables
            runs[f"{name}, all tables"] = functools.partial(
                timed, together.translate, tables=tables
            )
            runs[f"{name}, one table"] = functools.partial(timed, one.translate, tables=1)
        known = functools.partial(million_ids, draw=stream.known, tables=1)
        runs["known, find"] = functools.partial(known, one.find)
        runs["known, dict"] = functools.partial(known, in_dict.translate)
        fill = stream.fill()
        begun = time.perf_counter()
        one.translate(fill)
        print(
            f"{one.maps[0].live:,} ids got a row in {time.perf_counter() - begun:.2f} s", end="; "
        )
        together.translate(fill)
        in_dict.translate(fill)
        print(f"{one.maps[0].nbytes / one.maps[0].live:.1f} bytes a live id", end="; ")
        print(f"native kernels: {library.version()}")
        if FLAGS.torchrec:
            module = "experiments.benchmarks.peers.workers.torch_managed_collisions"
            python = environment.ready(cache_directory() / "peers")
            peer = stack.enter_context(Contestant(Worker("TorchRec", python, module)))
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            torchrec = TorchRec(peer, directory)
            for _ in range(1 + -(-FLAGS.interval // len(fill))):  # it may end between updates
                torchrec.translate(fill)
            for name, draw in (("known", stream.known), ("births", stream.births)):
                run_of = functools.partial(torchrec_ids, torchrec, draw, shares)
                runs[f"{name}, TorchRec"] = run_of
        in_turn(runs, 1)
        one.evicted = 0
        found = in_turn(runs, FLAGS.rounds)
    rows = [[x, *(f"{f(y):.2f}" for f in (statistics.median, min, max))] for x, y in found.items()]
    print(text_table(["million ids a second", "median", "least", "most"], rows))
    print(f"{one.evicted:,} ids of one table were evicted in the rounds")
    if shares:
        print(f"TorchRec gave a row to {100 * min(shares):.1f} % of the ids of a round or more")


if __name__ == "__main__":
    run(main)
