"""Plans a generated production-like set of tables for many devices, and times it.

    python -m experiments.benchmarks.planner --tables=1000 --devices=1024

Rows fall by a power law from a billion; widths are 32 to 256, bags 1 to 200 ids, most of them
short. Prints the fastest meshes, the number of tables of each placement, and the most loaded device
over the mean in memory, distinct rows and received bytes. Nothing but the plan is made.
"""

from __future__ import annotations

import time
from collections import Counter

from absl import flags

from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.cli.plan_report import collectives_table, meshes_table, shards_table
from dlrm_jax.cli.run import run
from dlrm_jax.embedding import RowWiseAdagrad
from dlrm_jax.embedding.planning.devices import DEVICES, device
from dlrm_jax.embedding.planning.limits import Limits
from dlrm_jax.embedding.planning.meshes import plan_meshes
from dlrm_jax.text_table import text_table
from experiments.benchmarks.production_tables import production_like

flags.DEFINE_integer("tables", 1000, "Number of tables; such as 100.", 1)
flags.DEFINE_integer("devices", 1024, "Number of devices; such as 128.", 1, 4096)
flags.DEFINE_enum("device", "h100", list(DEVICES), "Device that the mesh consists of.")
flags.DEFINE_integer("samples", 256, "Samples of each device in a step; such as 512.", 1)
flags.DEFINE_integer("seed", 1, "Seed of the set.", 0)


def main() -> None:
    """Tables, meshes, and the balance of the fastest one."""
    tables, features, lookups = production_like(FLAGS.tables, FLAGS.seed)
    kind = device(FLAGS.device)
    begun = time.process_time()
    found = plan_meshes(
        tables,
        features,
        lookups,
        FLAGS.devices,
        optimizer=RowWiseAdagrad(0.1),
        batch_size=FLAGS.samples * FLAGS.devices,
        device=kind,
        limits=Limits(memory=kind.memory_for_tables),
    )
    seconds = time.process_time() - begun
    best = found[0]
    rows = sum(table.rows for table in tables)
    print(
        f"{len(tables):,} tables of {rows:,} rows, {sum(t.nbytes for t in tables) / 2**40:.2f} "
        f"TiB; {sum(f.max_ids for f in features):,} ids a sample"
    )
    print(f"planned {len(found)} meshes in {seconds:.1f} s of one core\n")
    print(f"{meshes_table(found)}\n")
    counts = Counter(best.plan.placement(table.name) for table in tables)
    print(text_table(("placement", "tables"), [(name, str(n)) for name, n in counts.items()]))
    print(f"\n{shards_table(best)}")
    print(f"\n{collectives_table(best.collectives)}")


if __name__ == "__main__":
    run(main)
