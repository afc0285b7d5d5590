"""Compares ways to give the ids of a drifting log rows: quality at the same memory, day by day.

    python -m experiments.living_ids --days=30 --examples=50000

A generated log of some days, whose items are born and die (`dlrm_jax generate --format=log`), is
trained on as a stream: each example is predicted before it is trained on. Users and items have
tables of a given number of rows; only how an id gets its row differs:

- ``hashed``: by a hash, so that ids share rows;
- ``dynamic``: by dynamic ids (`dlrm_jax.dynamic_ids`), in the same number of rows;
- ``first day``: by a vocabulary of the first day, the others share a row;
- ``each day``: by a vocabulary that is made anew before each day, of all ids before it;
- ``unbounded``: by dynamic ids with rows for all.

It prints the normalized entropy of each day from the second on, in steps of five days, and for each
way the mean over these days, rows, and the share of the gap between hashed and unbounded that is
closed; the same is written to the workdir as ``living_ids.json``. The best possible is that of the
log's own click probabilities. Initial values are within ±1/√rows, so ways with
other numbers of rows start from others.
"""

from __future__ import annotations

from absl import flags

from dlrm_jax.cli.flags import FLAGS, chosen_workdir, define_workdir, own_flags
from dlrm_jax.cli.run import run
from dlrm_jax.cli.start import start
from dlrm_jax.data.generated.click_log import SCHEMA, ClickLog
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.files import write_json
from dlrm_jax.text_table import text_table
from dlrm_jax.training.record import versions
from experiments.living_ids.study import Study, entropies

_WAYS = ("hashed", "dynamic", "first day", "each day", "unbounded")

define_workdir("Directory of living_ids.json and of the runs", "runs/ids")
flags.DEFINE_integer("days", 30, "Days of the log; such as 10.", 3)
flags.DEFINE_integer("examples", 50_000, "Impressions of each day; such as 20000.", 1000)
flags.DEFINE_integer("users", 20_000, "Users of the log; such as 5000.", 10)
flags.DEFINE_integer("items", 2000, "Items of the log at a time; such as 500.", 10)
flags.DEFINE_float("drift", 0.05, "Share of the items that are new on each day.", 0, 1)
flags.DEFINE_integer("user_rows", 10_000, "Rows of the users' table; such as 5000.", 2)
flags.DEFINE_integer("item_rows", 2500, "Rows of the items' table; such as 1000.", 2)
flags.DEFINE_string("policy", "evict=lru", "Rules of the dynamic ids, after colons as in train.")
flags.DEFINE_integer("batch_size", 500, "Examples of a batch; a day has whole ones.", 1)
flags.DEFINE_float("learning_rate", 0.05, "Learning rate.", 0)
flags.DEFINE_integer("seed", 0, "Seed of the log and the models.", 0)


def main() -> None:
    """Trains all ways and prints the table."""
    workdir = chosen_workdir("living_ids")
    if workdir.exists() and any(workdir.iterdir()):  # neither days nor vocabularies can resume
        raise UserError(
            f"--workdir: expected a new or empty directory, as a study starts anew, got {workdir}; "
            f"remove it, or give another one"
        )
    if FLAGS.examples < 5 * FLAGS.batch_size:
        raise UserError(
            f"--examples: expected at least 5 batches of --batch_size={FLAGS.batch_size} a day, "
            f"{5 * FLAGS.batch_size:,}, got {FLAGS.examples:,}"
        )
    mesh = start("1x1", 1)
    examples = FLAGS.examples - FLAGS.examples % (5 * FLAGS.batch_size)
    log = ClickLog(FLAGS.users, FLAGS.items, FLAGS.drift, FLAGS.days, FLAGS.seed)
    days = [each.frame for each in log.each_day(examples)]
    best = entropies(days, [day["click_probability"].to_numpy() for day in days])
    schema = Schema.from_fields(SCHEMA)
    study = Study(
        schema,
        days,
        {"user_id": FLAGS.user_rows, "item_id": FLAGS.item_rows},
        FLAGS.policy,
        FLAGS.batch_size,
        FLAGS.learning_rate,
        FLAGS.seed,
    )
    found = {way: study.train(way, mesh, workdir / way.replace(" ", "_")) for way in _WAYS}
    means = {way: float(of_days[1:].mean()) for way, of_days in found.items()}
    gap = means["hashed"] - means["unbounded"]
    shown = [*range(1, FLAGS.days, 5)]
    rows = []
    for way, of_days in found.items():
        own = study.rows_of(way)
        closed = (means["hashed"] - means[way]) / gap
        rows.append(
            [way, *(f"{x:,}" for x in own.values())]
            + [f"{of_days[day]:.4f}" for day in shown]
            + [f"{means[way]:.4f}", f"{closed:.0%}"]
        )
    rows.append(
        ["best possible", "", ""]
        + [f"{best[day]:.4f}" for day in shown]
        + [f"{best[1:].mean():.4f}", ""]
    )
    head = ["rows of", "users", "items", *(f"day {day + 1}" for day in shown), "mean", "gap closed"]
    print(text_table(head, rows))
    result = {
        "flags": {x.name: x.value for x in own_flags()},
        "normalized_entropy": {way: of_days.tolist() for way, of_days in found.items()},
        "best": best.tolist(),
        "versions": versions(),
    }
    write_json(workdir / "living_ids.json", result)


if __name__ == "__main__":
    run(main)
