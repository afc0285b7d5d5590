"""What it brings that the rows of a table lie in the order of their frequency.

    python -m experiments.frequency --optimizer=rowwise_adagrad
    python -m experiments.frequency --data=criteo

The same batches are looked up in tables whose rows lie by descending frequency in the training
part, as `dlrm_jax preprocess` lays them, by first appearance in it, as other programs do, and at
random. The batches are of the validation part, so that rows don't lie well for having been counted
in them. Lines and pages that they touch, hits of caches and loads of shards are counted, not
measured; an array is taken to begin with a line and a page. Lookups and updates, on one device, are
timed in turn; a ratio is the random order's time over another's, round by round: the median, and
the quartiles. Of a training part much shorter than the tables, most rows don't occur, and lie as by
chance behind the others in every order: give generated data as many ``--examples`` as you can.

``busiest shard`` is its load over the mean, where row r of each table lies on shard r mod
``--shards``, in tables with more rows than the batch has examples; ``tables turned`` is that of
lookups where each table begins one shard after the one before. Prints tables, and writes
``frequency.json`` and ``frequency.png``, of the last batch size, to the workdir.
"""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Int32

from dlrm_jax.cli.datasets import check_data_flags, define_data_flag, load_data
from dlrm_jax.cli.pictures import percent, save
from dlrm_jax.cli.program import FLAGS, define_run_flags, run, start, versions, with_flags
from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset
from dlrm_jax.data.directory import Metadata
from dlrm_jax.data.statistics import Column, measure
from dlrm_jax.embedding.optimizer import slot_shapes
from dlrm_jax.errors import UserError
from dlrm_jax.files import write_json
from dlrm_jax.presets import preset
from dlrm_jax.training.build import describe, make_collection
from experiments.frequency.picture import draw
from experiments.frequency.row_order import (
    ORDERS,
    hit_rate,
    imbalance,
    in_batches,
    ordered_ids,
    touched,
)
from experiments.frequency.timing import Work, compare

define_run_flags(default_preset="kaggle")
define_data_flag()
flags.DEFINE_string("workdir", None, "of the results; without it, a new one in runs/")
flags.DEFINE_list("batch_sizes", ["2048", "8192"], "examples of a batch")
flags.DEFINE_float("cache_mib", 1, "of an LRU cache that holds rows or pages", lower_bound=0)
flags.DEFINE_integer("shards", 8, "over which rows are dealt out", lower_bound=1)
flags.DEFINE_integer("rounds", 15, "how often each order is timed", lower_bound=2)

_HOTTEST = (0.001, 0.01, 0.1)
_UNITS = {"64 B lines": 64, "4 KiB pages": 2**12, "2 MiB pages": 2**21}
_BATCHES = 16
_TRACE = 2**20  # accesses whose stack distances are found
_NO_EFFECT = (
    "mesh", "batch_size", "table_optimizers", "frozen_tables", "placements", "plan", "model",
    "model_options", "compression", "shared_tables", "pooling",
)  # fmt: skip


def main(argv: Sequence[str]) -> None:
    """Data, orders, what is counted, what is timed, results."""
    del argv
    for flag in _NO_EFFECT:
        if FLAGS[flag].present:
            raise UserError(f"--{flag} has no effect: these are tables of one kind on one device")
    check_data_flags()
    sizes = batch_sizes()
    config = with_flags(preset(FLAGS.preset))
    workdir = Path(FLAGS.workdir or time.strftime("runs/frequency-%Y%m%d-%H%M%S"))
    mesh = start("1x1")
    config, data = load_data(config)
    check_size(data, max(sizes))
    print(f"data: {data.source}")
    metadata = Metadata.read(data.directory) if data.directory else None
    columns = measure(data, metadata).columns
    served = hottest(columns)
    print_hottest(served)
    occurrences = [column.occurrences for column in columns]
    ids = ordered_ids(data, occurrences, _BATCHES * max(sizes), config.seed)
    collection = make_collection(config, mesh)
    counted, timed = {}, {}
    for size in sizes:
        counted[size] = {order: count(config, data, ids[order], size) for order in ORDERS}
        print_counted(size, counted[size])
        kept = {order: own[: _BATCHES * size] for order, own in ids.items()}
        timed[size] = compare(Work(collection, kept, size, config.seed), ORDERS, FLAGS.rounds)
        print_timed(timed[size])
    results = {
        "data": data.source,
        "config": dataclasses.asdict(config),
        "hottest_shares": _HOTTEST,
        "served_by_hottest": served,
        "counted": counted,
        "timed": timed,
        "kernels": collection.kernels,
        "allocator": os.environ.get("GLIBC_TUNABLES"),
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
    }
    write_json(workdir / "frequency.json", results)
    print(f"results: {workdir / 'frequency.json'}")
    last = sizes[-1]
    save(draw(columns, changes(counted[last], timed[last])), str(workdir / "frequency.png"))


def batch_sizes() -> list[int]:
    """What ``--batch_sizes`` says.

    Raises:
        UserError: they aren't positive integers, or there are none.
    """
    given = ",".join(FLAGS.batch_sizes)
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", given):
        raise UserError(f"--batch_sizes: expected positive integers with commas, got {given!r}")
    return [int(size) for size in FLAGS.batch_sizes]


def check_size(data: Dataset, batch_size: int) -> None:
    """The data must hold a batch to look up.

    Raises:
        UserError: they don't.
    """
    if len(data.validation) < batch_size:
        raise UserError(
            f"--batch_sizes: expected at most the {len(data.validation)} validation examples of "
            f"the data, got {batch_size}; give a smaller one, or more --examples"
        )


# -- What is counted -------------------------------------------------------------------


def hottest(columns: Sequence[Column]) -> dict[str, list[float]]:
    """The part of the training lookups that each of the hottest shares of the rows serves."""
    together = Column("all", 1, 0.0, np.concatenate([x.occurrences for x in columns]), None)
    return {
        column.name: [column.served_by_hottest(share) for share in _HOTTEST]
        for column in (*columns, together)
    }


def count(
    config: Config, data: Dataset, ids: Int32[np.ndarray, "N C"], size: int
) -> dict[str, float]:
    """Of batches in one order: what they touch, hits of a cache, how evenly shards are loaded."""
    batches = in_batches(data, ids, size, _BATCHES)
    row_bytes = bytes_of_rows(config)
    found = {"rows": touched(batches, 1, 1)}
    for array, nbytes in row_bytes.items():
        for name, unit in _UNITS.items():
            found[f"{name} of {array}"] = touched(batches, nbytes, unit)
    trace = batches[: max(1, _TRACE // (size * ids.shape[1]))]
    for name, unit in (("rows", row_bytes["vectors"]), ("4 KiB pages", _UNITS["4 KiB pages"])):
        found[f"hits of {FLAGS.cache_mib:g} MiB of {name}"] = hit_rate(
            trace, data.table_rows, row_bytes["vectors"], unit, int(FLAGS.cache_mib * 2**20)
        )
    # Smaller tables aren't worth dealing out.
    large = [
        [x for x, rows in zip(b, data.table_rows, strict=True) if rows > size] for b in batches
    ]
    if large[0]:
        found["busiest shard, lookups"] = imbalance(large, FLAGS.shards, distinct=False)
        found["busiest shard, tables turned"] = imbalance(large, FLAGS.shards, False, turned=True)
        found["busiest shard, distinct rows"] = imbalance(large, FLAGS.shards, distinct=True)
    return found


def bytes_of_rows(config: Config) -> dict[str, int]:
    """Of the vectors, and of each array of optimizer state."""
    described = describe(config)
    vectors = config.embedding_dim * jnp.dtype(config.table_dtype).itemsize
    slots = slot_shapes(described.optimizer, 1, config.embedding_dim, jnp.dtype(config.table_dtype))
    state = {name: slot.size * slot.dtype.itemsize for name, slot in slots.items()}
    return {"vectors": vectors, **state}


# -- What is said ----------------------------------------------------------------------


def print_hottest(served: Mapping[str, Sequence[float]]) -> None:
    """A line for each table."""
    print(f"{'served by the hottest':<36}{''.join(f'{100 * x:>11g}%' for x in _HOTTEST)} of rows")
    for name, shares in served.items():
        print(f"{name:<36}{''.join(f'{percent(share):>12}' for share in shares)}")


def print_counted(size: int, counted: Mapping[str, Mapping[str, float]]) -> None:
    """A line for each quantity, a column for each order."""
    print(f"\n{f'a batch of {size:,}':<36}{''.join(f'{order:>16}' for order in ORDERS)}")
    for name in counted["random"]:
        values = [counted[order][name] for order in ORDERS]
        if name.startswith("hits"):
            texts = map(percent, values)
        else:
            texts = [f"{x:,.3f}" if name.startswith("busiest") else f"{x:,.0f}" for x in values]
        print_line(name, texts)


def print_timed(timed: Mapping[str, Mapping[str, Any]]) -> None:
    """A line for each time and ratio, a column for each order."""
    for work, by_order in timed.items():
        ratios = [by_order[order]["ratio"] for order in ORDERS]
        print_line(f"{work}, ms", [f"{by_order[order]['ms']:.3f}" for order in ORDERS])
        print_line("… of the fastest round", [f"{by_order[x]['fastest_ms']:.3f}" for x in ORDERS])
        print_line("… random over this", [f"{median:.3f}" for _, median, _ in ratios])
        print_line("… its quartiles", [f"{low:.3f} to {high:.3f}" for low, _, high in ratios])


def print_line(name: str, texts: Iterable[str]) -> None:
    """A name and a column for each order."""
    print(f"{name:<36}{''.join(f'{text:>16}' for text in texts)}")


def changes(
    counted: Mapping[str, Mapping[str, float]], timed: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """Of all orders but the random one, quantities and times over its own."""
    found = {}
    for order in ORDERS[:-1]:
        at_random = counted["random"]  # a small cache may have no hits
        own = {name: x / at_random[name] for name, x in counted[order].items() if at_random[name]}
        times = {f"time of {work}": 1 / timed[work][order]["ratio"][1] for work in timed}
        found[order] = own | times
    return found


if __name__ == "__main__":
    run(main)
