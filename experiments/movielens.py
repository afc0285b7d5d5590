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
are those of `experiments.compare`; options and settings name features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from dlrm_jax.cli.flags import FLAGS, refuse_unless, require
from dlrm_jax.cli.run import run
from dlrm_jax.cli.start import start
from dlrm_jax.data.movielens.loading import MovieLens, load_movielens, load_ranking
from dlrm_jax.data.movielens.splits import SPLITS
from dlrm_jax.presets import preset
from dlrm_jax.training.build import check_config
from dlrm_jax.training.config_data import for_data
from experiments.compare.contest import asked, compare, define_comparison_flags, locked_workdir
from experiments.compare.tasks import Choices, Clicks, Task

_DECIDED = (
    "table_rows", "bag_lengths", "dense_features", "examples", "zipf_exponent", "teacher",
    "min_count", "shared_tables", "unseen_rate",
)  # fmt: skip

_FEATURES = "Features of users and items; without it, all of the files; such as user,item."

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
FLAGS["features"].help = _FEATURES
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
    features = FLAGS.features
    FLAGS["features"].unparse()  # a config without data has other tables
    contenders, config = asked(preset(FLAGS.preset))
    movielens, task = load(Path(FLAGS.data), features)
    config = for_data(config, movielens.dataset)
    with locked_workdir("movielens") as directory:
        check_config(config, mesh)
        print("features: " + ", ".join(movielens.features))
        compare(contenders, config, task, mesh, directory)


def load(directory: Path, features: Sequence[str] | None) -> tuple[MovieLens, Task]:
    """Loads the data of the flags, with these features or all."""
    if FLAGS.task == "clicks":
        split = FLAGS.split or "random"
        movielens = load_movielens(directory, split, _SEED, features, FLAGS.history)
        return movielens, Clicks(movielens.dataset)
    split = FLAGS.split or "leave_one_out"
    ranking = load_ranking(directory, _SEED, features, FLAGS.history, FLAGS.negatives, split=split)
    data = ranking.movielens.dataset
    return ranking.movielens, Choices(data, ranking.candidates, ranking.train)


if __name__ == "__main__":
    run(main)
