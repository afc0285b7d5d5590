"""Recall and speed of the index of items, against Faiss at equal recall.

    python -m experiments.benchmarks.retrieval_index --items=1000000 --dim=64 --threads=1

Items and users are drawn as two towers make them (see `benchmarks.clustered_items`). Recall is that
of the 100 best items of exact products in float32, among all items or among those that pass a
filter by language and category, one in twenty.

For each recall of ``--recalls``, an index with cells reads the least number of them, of 1, 2, 3, 4,
6, 8, 12 and so on, that reaches it. Then this project's index and each of Faiss are timed in turn,
round by round; figures are medians, the ratio is that of queries per second with its quartiles.
Faiss runs in its own process and environment (see `experiments.benchmarks.peers`), with as many
cells, and with the bitmap of the filter made beforehand. With ``--threads=1``, times are those of
the processor, which other programs disturb less.
"""

from __future__ import annotations

import functools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from dlrm_jax.cli.flags import FLAGS, define_numbers
from dlrm_jax.cli.run import run
from dlrm_jax.console import status
from dlrm_jax.errors import UserError
from dlrm_jax.files import cache_directory
from dlrm_jax.native import library
from dlrm_jax.native.thread_count import processors
from dlrm_jax.retrieval.index.cells import default_cells
from dlrm_jax.retrieval.index.item_index import ItemIndex
from experiments.benchmarks import peers
from experiments.benchmarks.clustered_items import FILTER, Drawn, draw
from experiments.benchmarks.peers import environment
from experiments.benchmarks.peers.contestant import Contestant, Worker
from experiments.benchmarks.timing import calls_per_second, ratio_quartiles

flags.DEFINE_integer("items", 1_000_000, "Items; such as 100000.", 1000)
flags.DEFINE_integer("dim", 64, "Numbers of a vector; such as 128.", 1)
flags.DEFINE_integer("queries", 512, "Users that ask; such as 2000.", 1)
flags.DEFINE_integer("cells", 0, "Cells; 0 for twice the root of the items; such as 1024.", 0)
flags.DEFINE_list("recalls", ["0.9", "0.95"], "Recalls at which indexes are compared; such as 0.8.")
define_numbers("batch_sizes", (1, 64), "Queries of a call; such as 1,512.", low=1)
flags.DEFINE_integer("rounds", 5, "Rounds in which both are timed; such as 20.", 1)
flags.DEFINE_float("seconds", 0.3, "Seconds of each timing; such as 1.", 0.01)
flags.DEFINE_integer("threads", 1, "Threads of both; 0 for all processors; such as 2.", 0)
flags.DEFINE_integer("seed", 0, "Seed of items and users; such as 1.", 0)
flags.DEFINE_bool("faiss", True, "Also times Faiss; its package is installed on first use.")
flags.DEFINE_string("environment", None, "Directory for Faiss; without it, one in the cache.")

K = 100
PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
OURS: tuple[str, ...] = ("flat int8", "ivf int8")
FAISS: tuple[str, ...] = ("IndexFlat", "IVFFlat", "IVF SQ8")


class Search(NamedTuple):
    """How an index is asked.

    Attributes:
        name: name of the index.
        probes: cells that a query reads; 0 for an index without cells.
        is_filtered: whether items must pass the filter.
    """

    name: str
    probes: int
    is_filtered: bool


class Ours:
    """This project's indexes."""

    def __init__(self, drawn: Drawn, cells: int):
        begun = time.perf_counter()
        flat = ItemIndex.build(drawn.items, drawn.attributes)
        built = time.perf_counter()
        ivf = ItemIndex.build(drawn.items, drawn.attributes, "ivf", cells)
        self.seconds = {OURS[0]: built - begun, OURS[1]: time.perf_counter() - built}
        self._made = dict(zip(OURS, (flat, ivf), strict=True))
        self._users = drawn.users

    def find(self, search: Search, begin: int = 0, end: int | None = None) -> np.ndarray:
        """The items of queries [begin, end)."""
        wanted = FILTER if search.is_filtered else None
        index, most = self._made[search.name], FLAGS.threads or None
        return index.search(self._users[begin:end], K, wanted, search.probes or None, most).items

    def calls_per_second(self, search: Search, size: int) -> float:
        """See `timing.calls_per_second`."""
        count = len(self._users) - size + 1
        calls = [
            functools.partial(self.find, search, begin, begin + size)
            for begin in range(0, count, size)
        ]
        return calls_per_second(calls, FLAGS.seconds, FLAGS.threads == 1)


class Faiss:
    """Faiss's indexes, in another process."""

    def __init__(self, contestant: Contestant, drawn: Drawn, cells: int, directory: Path):
        self._contestant, self._output = contestant, directory / "found.npy"
        names = ("vectors", "queries", "passing")
        for name, array in zip(names, (drawn.items, drawn.users, drawn.passing()), strict=True):
            np.save(directory / f"{name}.npy", array)
        answer = contestant.ask(
            "build",
            **{name: str(directory / f"{name}.npy") for name in names},
            cells=cells,
            threads=FLAGS.threads or processors(),
            names=FAISS,
        )
        self.version, self.seconds = answer["version"], answer["seconds"]

    def find(self, search: Search) -> np.ndarray:
        """The items of all queries."""
        self._contestant.ask("search", **search._asdict(), k=K, output=str(self._output))
        return np.load(self._output)

    def calls_per_second(self, search: Search, size: int) -> float:
        """See `timing.calls_per_second`."""
        given: dict[str, Any] = {"k": K, "size": size, "seconds": FLAGS.seconds}
        given["processor_time"] = FLAGS.threads == 1
        return self._contestant.ask("run", **search._asdict(), **given)["calls_per_second"]


def exact(drawn: Drawn, is_filtered: bool) -> np.ndarray:
    """The `K` best items of each user by products in float32."""
    kept = np.flatnonzero(drawn.passing()) if is_filtered else np.arange(len(drawn.items))
    items = drawn.items[kept]
    found = []
    for first in range(0, len(drawn.users), 32):
        scores = drawn.users[first : first + 32] @ items.T
        found.append(kept[np.argpartition(-scores, K - 1, axis=1)[:, :K]])
    return np.concatenate(found)


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    """The share of the wanted items that were found."""
    shares = [len(np.intersect1d(x, y)) / K for x, y in zip(found, wanted, strict=True)]
    return float(np.mean(shares))


def searches(
    of: Ours | Faiss, name: str, wanted: np.ndarray, is_filtered: bool, cells: int
) -> Iterator[tuple[Search, float]]:
    """The searches of an index that are timed, with their recall; those that reach none end it."""
    if name in (OURS[0], FAISS[0]):
        search = Search(name, 0, is_filtered)
        yield search, recall(of.find(search), wanted)
        return
    targets = sorted(map(float, FLAGS.recalls))
    for probes in (x for x in PROBES if x <= cells):
        search = Search(name, probes, is_filtered)
        reached = recall(of.find(search), wanted)
        if targets and reached >= targets[0]:
            yield search, reached
            targets = [x for x in targets if x > reached]
        if not targets:
            return


def lines(ours: Ours, faiss: Faiss | None, drawn: Drawn, cells: int) -> Iterator[str]:
    """The rows of the Markdown table."""
    for is_filtered in (False, True):
        wanted = exact(drawn, is_filtered)
        own = {x: [*searches(ours, x, wanted, is_filtered, cells)] for x in OURS}
        theirs = {
            x: [*searches(faiss, x, wanted, is_filtered, cells)] if faiss else [] for x in FAISS
        }
        pairs = [(OURS[0], FAISS[0]), (OURS[1], FAISS[1]), (OURS[1], FAISS[2])]
        for name, other in pairs:
            for i, (search, reached) in enumerate(own[name]):
                peer = theirs[other][i] if i < len(theirs[other]) else None
                if peer is None and other == FAISS[2]:
                    continue  # the index has a line without a peer already
                for size in FLAGS.batch_sizes:
                    yield line(ours, faiss, (search, reached), peer, size)


def line(
    ours: Ours,
    faiss: Faiss | None,
    own: tuple[Search, float],
    peer: tuple[Search, float] | None,
    size: int,
) -> str:
    """A row: both are timed in turn."""
    rates: list[float] = []
    others: list[float] = []
    for _ in range(FLAGS.rounds):
        rates.append(size * ours.calls_per_second(own[0], size))
        if faiss and peer:
            others.append(size * faiss.calls_per_second(peer[0], size))
    search, reached = own
    cells = [search.name, f"{search.probes or ''}", "yes" if search.is_filtered else "no"]
    cells += [f"{size}", f"{reached:.3f}", f"{statistics.median(rates):,.0f}"]
    if peer and others:
        low, median, high = ratio_quartiles(rates, others)
        name = f"{peer[0].name}, {peer[0].probes} probes" if peer[0].probes else peer[0].name
        cells += [name, f"{peer[1]:.3f}", f"{statistics.median(others):,.0f}"]
        cells.append(f"{median:.2f} ({low:.2f} to {high:.2f})")
    else:
        cells += [""] * 4
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Draws, builds, and prints a row of the table for each search and batch size."""
    if max(FLAGS.batch_sizes) > FLAGS.queries:
        raise UserError(f"--batch_sizes: expected at most the {FLAGS.queries} queries")
    drawn = draw(FLAGS.items, FLAGS.queries, FLAGS.dim, FLAGS.seed)
    passing = int(drawn.passing().sum())
    if passing < K:
        raise UserError(
            f"--items: expected {K} or more that pass the filter, {passing} of {FLAGS.items:,} do; "
            f"give more items"
        )
    cells = FLAGS.cells or default_cells(FLAGS.items)
    ours, faiss = Ours(drawn, cells), None
    with ExitStack() as stack:
        if FLAGS.faiss:
            path = Path(FLAGS.environment) if FLAGS.environment else cache_directory() / "faiss"
            files = [Path(peers.__file__).with_name("faiss.txt")]
            python = environment.ready(path, files, "Faiss")
            count = str(FLAGS.threads or processors())
            module = "experiments.benchmarks.peers.workers.faiss_index"
            worker = Worker("Faiss", python, module, environment={"OMP_NUM_THREADS": count})
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            faiss = Faiss(stack.enter_context(Contestant(worker)), drawn, cells, directory)
        built = {**ours.seconds, **(faiss.seconds if faiss else {})}
        status(
            f"{FLAGS.items:,} items of {FLAGS.dim} numbers in {cells:,} cells, {FLAGS.queries} "
            f"users, {drawn.passing().mean():.1%} of the items pass the filter; native kernels: "
            f"{library.version()}; Faiss {faiss.version if faiss else 'left out'}; threads "
            f"{FLAGS.threads or processors()}; load average {os.getloadavg()[0]:.1f}; seconds to "
            f"build: {', '.join(f'{name} {x:.1f}' for name, x in built.items())}\n"
        )
        status(
            "| index | probes | filter | batch | recall@100 | queries/s | Faiss | its recall@100 "
            "| its queries/s | ratio |"
        )
        status("|---|---|---|---|---|---|---|---|---|---|")
        for text in lines(ours, faiss, drawn, cells):
            status(text)


if __name__ == "__main__":
    run(main)
