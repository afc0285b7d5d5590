"""Compares models on MovieLens: which movies will a user like, or which one comes next?

    python -m experiments.movielens --data=ml-100k --models=dlrm,dcn_v2,deepfm --workdir=runs/ml
    python -m experiments.movielens --data=ml-1m --task=ranking --features=user,item --models=ncf
    python -m experiments.movielens --data=ml-1m --features=user,item --history=20 \
        --models=din:target=item,dlrm

``--data`` is a directory as GroupLens publishes it (100K, 1M, 10M, 20M, 25M, …) or in RecBole's
form. ``clicks``: label 1 where the user gives at least four stars, examples split 8:1:1 at random
or in time. ``--split=rows=FILE`` splits them as a file says, for comparisons with published
results. ``ranking``: each user's last movie among 99 that the user hasn't rated, with four
sampled negatives for each training example (HR@10, NDCG@10; arXiv 1708.05031). Models and options
are those of `experiments.compare`; an option may name a feature.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from dlrm_jax.cli.flags import FLAGS, refuse_unless, require
from dlrm_jax.cli.run import run
from dlrm_jax.cli.start import start
from dlrm_jax.config import Config
from dlrm_jax.data.movielens.loading import MovieLens, load_movielens, load_ranking
from dlrm_jax.data.movielens.splits import SPLITS
from dlrm_jax.presets import preset
from dlrm_jax.training.build import check_config, for_data
from experiments.compare.contest import asked, compare, define_comparison_flags, locked_workdir
from experiments.compare.tasks import Choices, Clicks, Task
from experiments.compare.trials import Contender

_DECIDED = (
    "table_rows", "bag_lengths", "dense_features", "examples", "zipf_exponent", "teacher",
    "min_count", "shared_tables",
)  # fmt: skip

define_comparison_flags(
    "movielens", dict.fromkeys(_DECIDED, "the data decide"), "dlrm,dcn_v2,deepfm"
)
flags.DEFINE_string("data", None, "Directory of MovieLens' files; such as ml-100k.")
flags.DEFINE_enum("task", "clicks", ["clicks", "ranking"], "Task that the models learn.")
flags.DEFINE_string(
    "split",
    None,
    f"How examples are split: {', '.join(SPLITS)} or rows=FILE; without it, random for clicks and "
    f"leave_one_out for ranking; such as time.",
)
flags.DEFINE_list(
    "features", [], "Features of users and items; without it, all of the files; such as user,item."
)
flags.DEFINE_integer(
    "history", 0, "Most movies of the user's history, a feature; 0 for none; such as 20.", 0
)
flags.DEFINE_integer(
    "negatives", 4, "Negatives for each training example of --task=ranking; such as 4.", 0
)

_SEED = 0  # of the split and of negatives: all trials have the same


def main() -> None:
    """Reads contenders and data, then runs the trials."""
    require("data")
    refuse_unless(FLAGS.task == "ranking", "--task=ranking", "negatives")
    mesh = start(FLAGS.mesh)
    contenders, config = asked(preset(FLAGS.preset))
    movielens, task = load(Path(FLAGS.data))
    config, contenders = for_movielens(config, movielens), by_column(contenders, movielens)
    with locked_workdir("movielens") as directory:
        check_config(config, mesh)
        print("features: " + ", ".join(movielens.features))
        compare(contenders, config, task, mesh, directory)


def load(directory: Path) -> tuple[MovieLens, Task]:
    """Loads the data of the flags."""
    features = FLAGS.features or None
    if FLAGS.task == "clicks":
        split = FLAGS.split or "random"
        movielens = load_movielens(directory, split, _SEED, features, FLAGS.history)
        return movielens, Clicks(movielens.dataset)
    split = FLAGS.split or "leave_one_out"
    ranking = load_ranking(directory, _SEED, features, FLAGS.history, FLAGS.negatives, split=split)
    data = ranking.movielens.dataset
    return ranking.movielens, Choices(data, ranking.candidates, ranking.train)


def for_movielens(config: Config, movielens: MovieLens) -> Config:
    """The config with the tables of the data; a history reads the table of the items."""
    places = {name: f"C{i + 1}" for i, name in enumerate(movielens.features)}
    pairs = zip(movielens.features, movielens.tables, strict=True)
    shared = tuple(f"{places[name]}={places[table]}" for name, table in pairs if name != table)
    return dataclasses.replace(for_data(config, movielens.dataset), shared_tables=shared)


def by_column(contenders: Sequence[Contender], movielens: MovieLens) -> list[Contender]:
    """The contenders with feature names in options replaced by columns, C1, C2, …."""
    places = {f"={name}": f"=C{i + 1}" for i, name in enumerate(movielens.features)}

    def renamed(model: str) -> str:
        items = [item.partition("=") for item in model.split(":")]
        return ":".join(key + places.get(sign + value, sign + value) for key, sign, value in items)

    return [dataclasses.replace(x, name=renamed(x.name)) for x in contenders]


if __name__ == "__main__":
    run(main)
