"""Measures the effect of ordering a table's rows by frequency.

    python -m experiments.frequency --optimizer=rowwise_adagrad
    python -m experiments.frequency --data=criteo

The same batches are looked up in tables with three orders of rows: by descending frequency in the
training split, as `dlrm_jax preprocess` orders them; by first appearance, as other programs do; and
at random. The batches come from the validation split, so that they didn't decide the order. Touched
cache lines and pages, cache hits and loads of shards are counted, not measured; an array is assumed
to begin with a line and a page. Lookups and updates, on one device, are timed in turn. A ratio is
the random order's time over another's, round by round: the median, and the quartiles. In a training
split much shorter than the tables, most rows don't occur and are at random behind the others in
every order: give generated data as many ``--examples`` as you can.

``busiest shard`` is its load over the mean, where row r of each table is on shard r mod
``--shards``, in tables with more rows than the batch has examples; in ``tables turned`` each table
begins one shard after the one before. It prints tables, and writes ``frequency.json`` and, for the
last batch size, ``frequency.png`` to the workdir.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Int32

from dlrm_jax.cli.config_flags import define_run_flags, with_flags
from dlrm_jax.cli.datasets import check_data_flags, define_data_flag
from dlrm_jax.cli.flags import FLAGS, chosen_workdir, define_numbers, define_workdir
from dlrm_jax.cli.pictures import percent, save
from dlrm_jax.cli.run import run
from dlrm_jax.cli.start import start
from dlrm_jax.config import FIELD_TYPES, Config
from dlrm_jax.data.arrays import Dataset
from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.statistics import Column, measure
from dlrm_jax.embedding.row_optimizer import slot_bytes
from dlrm_jax.errors import UserError
from dlrm_jax.files import write_json
from dlrm_jax.presets import preset
from dlrm_jax.run_data import load_data
from dlrm_jax.text_table import text_table
from dlrm_jax.training.build import describe, make_collection
from dlrm_jax.training.record import versions
from experiments.frequency.picture import draw
from experiments.frequency.row_order import (
    ORDERS,
    hit_rate,
    imbalance,
    in_batches,
    ordered_ids,
    touched,
)
from experiments.frequency.timing import compare

_HOTTEST = (0.001, 0.01, 0.1)
_UNITS = {"64 B lines": 64, "4 KiB pages": 2**12, "2 MiB pages": 2**21}
_BATCHES = 16
_TRACE = 2**20  # accesses with computed stack distances
_READ = (
    "table_rows", "bag_lengths", "dense_features", "examples", "zipf_exponent", "teacher",
    "min_count", "seed", "loss", "embedding_dim", "table_dtype", "stochastic_rounding", "kernels",
    "optimizer", "learning_rate", "eps",
)  # fmt: skip
_NO_EFFECT = {"mesh", *FIELD_TYPES} - set(_READ)

define_run_flags(
    "kaggle",
    dict.fromkeys(_NO_EFFECT, "lookups and updates of tables of one kind are timed, on one device"),
)
define_data_flag()
define_workdir("Directory of the results", "runs/frequency")
define_numbers("batch_sizes", (2048, 8192), "Examples of a batch; such as 128,2048.", low=1)
flags.DEFINE_float("cache_mib", 1, "MiB of an LRU cache for rows or pages; such as 0.5.", 0)
flags.DEFINE_integer("shards", 8, "Shards that the rows are dealt out to; such as 64.", 1)
flags.DEFINE_integer("rounds", 15, "Rounds in which each order is timed; such as 30.", 2)


def main() -> None:
    """Loads data, orders rows, counts, times and reports."""
    check_data_flags()
    sizes = FLAGS.batch_sizes
    if not sizes:
        raise UserError("--batch_sizes: expected at least one number, got none")
    mesh = start("1x1")
    config = with_flags(preset(FLAGS.preset))
    workdir = chosen_workdir("frequency")
    config, data = load_data(config, FLAGS.data)
    if data.shared:
        raise UserError(
            f"--data: expected a table for each column, got {FLAGS.data}, where "
            f"{min(data.shared)} shares that of {data.shared[min(data.shared)]}; prepare the data "
            f"without shared vocabularies"
        )
    if len(data.validation) < max(sizes):
        raise UserError(
            f"--batch_sizes: expected at most the {len(data.validation)} validation examples of "
            f"the data, got {max(sizes)}; give a smaller one, or more --examples"
        )
    print(f"data: {data.source}")
    metadata = Metadata.read(data.directory) if data.directory else None
    columns = measure(data, metadata).columns
    served = hottest(columns)
    header = ["lookups served by the hottest", *(f"{100 * x:g}% of rows" for x in _HOTTEST)]
    print(text_table(header, [[name, *map(percent, shares)] for name, shares in served.items()]))
    occurrences = [column.occurrences for column in columns]
    ids = ordered_ids(data, occurrences, _BATCHES * max(sizes), config.seed)
    collection = make_collection(config, mesh)
    counted, timed = {}, {}
    for size in sizes:
        counted[size] = {order: count(config, data, ids[order], size) for order in ORDERS}
        kept = {order: own[: _BATCHES * size] for order, own in ids.items()}
        timed[size] = compare(collection, kept, size, config.seed, FLAGS.rounds)
        print(f"\n{orders_table(size, counted[size], timed[size])}")
    results = {
        "data": data.source,
        "config": dataclasses.asdict(config),
        "hottest_shares": _HOTTEST,
        "served_by_hottest": served,
        "counted": counted,
        "timed": timed,
        "kernels": collection.kernels_in_use,
        "allocator": os.environ.get("GLIBC_TUNABLES"),
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
    }
    write_json(workdir / "frequency.json", results)
    print(f"results: {workdir / 'frequency.json'}")
    last = sizes[-1]
    save(draw(columns, changes(counted[last], timed[last])), str(workdir / "frequency.png"))


# -- Counts -----------------------------------------------------------------------------


def hottest(columns: Sequence[Column]) -> dict[str, list[float]]:
    """The part of the training lookups that each share of the hottest rows serves."""
    together = Column("all", 1, 0.0, np.concatenate([x.occurrences for x in columns]), None)
    return {
        column.name: [column.served_by_hottest(share) for share in _HOTTEST]
        for column in (*columns, together)
    }


def count(
    config: Config, data: Dataset, ids: Int32[np.ndarray, "N C"], size: int
) -> dict[str, float]:
    """Counts touched memory, cache hits and loads of shards for the batches of one order."""
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
    # Smaller tables aren't split over shards.
    large = [
        [x for x, rows in zip(b, data.table_rows, strict=True) if rows > size] for b in batches
    ]
    if large[0]:
        found["busiest shard, lookups"] = imbalance(large, FLAGS.shards, distinct=False)
        found["busiest shard, tables turned"] = imbalance(large, FLAGS.shards, False, turned=True)
        found["busiest shard, distinct rows"] = imbalance(large, FLAGS.shards, distinct=True)
    return found


def bytes_of_rows(config: Config) -> dict[str, int]:
    """Bytes of a row of the vectors, and of each array of optimizer state."""
    dim, dtype = config.embedding_dim, jnp.dtype(config.table_dtype)
    return {"vectors": dim * dtype.itemsize, **slot_bytes(describe(config).optimizer, dim, dtype)}


# -- What is printed -------------------------------------------------------------------


def orders_table(
    size: int, counted: Mapping[str, Mapping[str, float]], timed: Mapping[str, Mapping[str, Any]]
) -> str:
    """A line for each quantity, time and ratio, a column for each order."""
    rows = []
    for name in counted["random"]:
        values = [counted[order][name] for order in ORDERS]
        if name.startswith("hits"):
            texts = map(percent, values)
        else:
            texts = [f"{x:,.3f}" if name.startswith("busiest") else f"{x:,.0f}" for x in values]
        rows.append([name, *texts])
    for work, by_order in timed.items():
        ratios = [by_order[order]["ratio"] for order in ORDERS]
        rows += [
            [f"{work}, ms", *(f"{by_order[order]['ms']:.3f}" for order in ORDERS)],
            ["… of the fastest round", *(f"{by_order[x]['fastest_ms']:.3f}" for x in ORDERS)],
            ["… random over this", *(f"{median:.3f}" for _, median, _ in ratios)],
            ["… its quartiles", *(f"{low:.3f} to {high:.3f}" for low, _, high in ratios)],
        ]
    return text_table([f"a batch of {size:,}", *ORDERS], rows)


def changes(
    counted: Mapping[str, Mapping[str, float]], timed: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """Quantities and times of all other orders over those of the random one."""
    found = {}
    for order in ORDERS[:-1]:
        at_random = counted["random"]  # a small cache may have no hits
        own = {name: x / at_random[name] for name, x in counted[order].items() if at_random[name]}
        times = {f"time of {work}": 1 / timed[work][order]["ratio"][1] for work in timed}
        found[order] = own | times
    return found


if __name__ == "__main__":
    run(main)
