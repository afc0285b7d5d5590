"""Trains two towers on a log: which of all items will a user choose next?

    python -m experiments.two_tower --data=log --user_columns=user_id,last_viewed,device \
        --item_columns=item_id,category --workdir=runs/retrieval
    python -m experiments.two_tower --mesh=2x4

``--data`` is what `dlrm_jax train` takes: a directory of `dlrm_jax preprocess`, or a raw Criteo
file. One tower makes a vector of a user, the other of an item, and the score is their product.
They learn from the rows with label 1: each user's own item must win against the items of the
batch, and against negatives drawn from all items. It prints recall@k and NDCG@k of validation and
test among all items of the training rows, beside those of a ranking by popularity. The workdir gets
the vectors of users and items with the values of the log, and an index of the items. If the program
is interrupted, run the same command again to resume.

Without ``--data`` it generates choices by a planted taste, which no model can beat.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from absl import flags

from dlrm_jax.backend import describe_devices
from dlrm_jax.cli.config_flags import define_field
from dlrm_jax.cli.flags import (
    FLAGS,
    chosen_workdir,
    define_mesh,
    define_workdir,
    refuse,
    require,
)
from dlrm_jax.cli.run import run
from dlrm_jax.cli.start import start
from dlrm_jax.config import FIELD_TYPES, Config
from dlrm_jax.console import status
from dlrm_jax.data.arrays import Dataset, Examples
from dlrm_jax.data.directory import load_directory
from dlrm_jax.embedding.optimizer import OPTIMIZERS
from dlrm_jax.errors import UserError
from dlrm_jax.retrieval import files
from dlrm_jax.retrieval.model import MODEL, check_settings, config_of
from dlrm_jax.retrieval.ranking import nearest
from dlrm_jax.retrieval.run import run as run_retrieval
from dlrm_jax.retrieval.settings import RetrievalSettings
from dlrm_jax.retrieval.task import Task, chosen_label, make_task, sides_of
from dlrm_jax.run_data import load_data
from dlrm_jax.text_table import text_table
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.model import unread
from experiments.two_tower.planted_taste import Choices, as_dataset, generate

KNOWN = 11  # known items of each generated user
SHOWN, NEAREST = 3, 5  # items whose nearest ones are printed, and how many of these

# Fields of `Config` that two towers read. Others are those of click models.
_DEFAULTS: dict[str, Any] = {
    "embedding_dim": 32,
    "batch_size": 1024,
    "epochs": 3,
    "dense_optimizer": "adam",
}
_READ = (
    "embedding_dim", "table_dtype", "stochastic_rounding", "comm_dtype", "placements", "kernels",
    "optimizer", "table_optimizers", "dense_optimizer", "shard_dense_optimizer",
    "dense_comm_dtype", "product_precision", "eps", "warmup_steps",
    "decay_start", "decay_steps", "batch_size", "evaluation_batch_size", "steps", "epochs",
    "log_every", "eval_every", "checkpoint_every", "check_copies_every", "keep_checkpoints",
    "validation_examples", "seed", "shuffle_window",
)  # fmt: skip
_OF_LOG = (
    "user_columns", "item_columns", "user_id", "item_id", "exclude", "label", "validation_examples",
)  # fmt: skip

define_mesh()
flags.DEFINE_string("data", None, "Directory of prepared data, or a raw Criteo file; such as log.")
flags.DEFINE_string(
    "label",
    None,
    "Label whose rows with 1 are choices, of data with several; without it, the main one; such as "
    "purchased.",
)
for _field in dataclasses.fields(RetrievalSettings):
    define_field(_field, get_type_hints(RetrievalSettings)[_field.name], _field.default)
flags.DEFINE_enum(
    "index",
    "none",
    ["none", "usearch"],
    "Index of the items that is written beside items.npy, which Faiss reads.",
)
define_workdir("Directory of metrics, checkpoints and vectors", "runs/retrieval")
flags.DEFINE_enum("pooling", "mean", ["mean", "sum"], "How the vectors of a bag are combined.")
for _field in dataclasses.fields(Config):
    _default = _DEFAULTS.get(_field.name, _field.default)
    if _field.name == "optimizer":
        flags.DEFINE_enum("optimizer", _default, list(OPTIMIZERS), _field.metadata["text"])
    elif _field.name in _READ:
        define_field(_field, FIELD_TYPES[_field.name], _default)
flags.DEFINE_float(
    "learning_rate", 0.001, "Learning rate of the towers, after warm-up; such as 0.003."
)
flags.DEFINE_integer("users", 20_000, "Users of the generated data; such as 5000.", 1)
flags.DEFINE_integer("items", 5000, "Items of the generated data; such as 1000.", KNOWN + 1)


def main() -> None:
    """Settings, data, items, learner, then what `dlrm_jax.retrieval.run.run` does."""
    check_flags()
    workdir = chosen_workdir("two_tower")
    settings, config = settings_of_flags(), config_of_flags()
    for name, why in unread(config).items():
        if name in _READ:
            refuse([name], why)
    files.check_index(FLAGS.index)
    mesh = start(FLAGS.mesh)
    check_settings(config, settings, mesh)
    status(f"mesh {FLAGS.mesh}: {describe_devices(mesh)}")
    choices = None
    if FLAGS.data:
        config, data = load(Path(FLAGS.data), config, settings)
    else:
        choices = generate(FLAGS.users, FLAGS.items, KNOWN, FLAGS.seed)
        data = as_dataset(choices, FLAGS.seed)
    status(data.source)
    task = make_task(data, settings)
    status(describe(task))
    config = config_of(config, settings, data, task.user, task.item)
    learner = make_learner(config, mesh)
    collection = learner.collection
    status(collection.plan.describe(collection.tables.values(), learner.axes.groups))
    status(f"workdir {workdir}")
    outcome = run_retrieval(task, config, learner, workdir, FLAGS.index, status)
    summary = dict(outcome.summary)
    if choices:
        best = outcome.retrieval.rank(task.questions["test"], *planted(choices, task))
        summary["test"] = {**summary["test"], "planted taste": best}
    report(task, summary, outcome.items, workdir)


def check_flags() -> None:
    """Refuses flags that are missing or that nothing would read."""
    if FLAGS.data:
        refuse(["users", "items"], "with --data, which has users and items")
        require("user_columns", "item_columns")
    else:
        refuse(_OF_LOG, "without --data")
        ranked = FLAGS.items - KNOWN
        if max(FLAGS.recall_at, default=0) > ranked:
            raise UserError(
                f"--recall_at: {max(FLAGS.recall_at)} is more than the {ranked} ranked items: "
                f"--items={FLAGS.items} without {KNOWN} known items"
            )
    if not FLAGS.negatives:
        refuse(["sampler"], "without --negatives")
    if FLAGS.mesh == "1x1":
        refuse(["check_copies_every"], "on a mesh of one device, which has no copies")


def settings_of_flags() -> RetrievalSettings:
    """The settings of the towers; those of the generated data are known."""
    given = values_of([x.name for x in dataclasses.fields(RetrievalSettings)])
    if not FLAGS.data:
        given |= {"user_columns": ("group", "known"), "item_columns": ("item",), "exclude": "known"}
    return RetrievalSettings(**given)


def config_of_flags() -> Config:
    """The config of tables and training, whose tables the data decide later."""
    return Config(model=MODEL, **values_of((*_READ, "learning_rate", "pooling")))


def values_of(names: Iterable[str]) -> dict[str, Any]:
    """The values of flags by name, with tuples for lists."""
    given = {name: FLAGS[name].value for name in names}
    return {x: tuple(y) if isinstance(y, list) else y for x, y in given.items()}


def load(path: Path, config: Config, settings: RetrievalSettings) -> tuple[Config, Dataset]:
    """The data, and the config with the label that they are read with.

    Wrong columns of a directory are refused before its examples are read.
    """
    if not path.is_dir():
        if path.is_file():
            refuse(["label"], "with a raw Criteo file, which has one label")
        return config, load_data(config, path)[1]
    data = load_directory(path)
    sides_of(data, settings)
    config = dataclasses.replace(config, labels=chosen_label(data, FLAGS.label or ""))
    if config.labels:
        others = ", ".join(x for x in data.labels if x not in config.labels)
        status(f"choices are the rows with {config.labels[0]}=1; --label takes {others} instead")
    return config, load_data(config, data)[1]


def describe(task: Task) -> str:
    """One line: items, training rows, questions."""
    left_out = f" ({task.train.new:,} without an item are left out)" if task.train.new else ""
    asked = "; ".join(
        f"{name} {len(x):,}" + (f" and {x.new:,} of new items" if x.new else "")
        for name, x in task.questions.items()
    )
    return (
        f"{len(task.items):,} items; rows with label 1: train {len(task.train):,}{left_out}; "
        f"{asked or 'none to validate or test'}"
    )


def planted(choices: Choices, task: Task) -> tuple[Any, np.ndarray]:
    """Vectors whose products are the planted taste: of test users, and of items."""
    likes = np.column_stack([choices.likes, np.ones(len(choices.likes), np.float32)])
    qualities = np.column_stack([choices.qualities, choices.fame])[task.items.keys]
    unread = iter(task.questions["test"].rows)  # user by user

    def users(examples: Examples) -> np.ndarray:
        return likes[[next(unread) for _ in range(len(examples))]]

    return users, qualities


def report(task: Task, summary: dict[str, Any], vectors: np.ndarray, workdir: Path) -> None:
    """Prints recall and NDCG of each split, and the items nearest to the most popular ones."""
    for split in task.questions:
        names = [name for name in next(iter(summary[split].values())) if "@" in name]
        rows = [
            [ranking, *(f"{found[name]:.4f}" for name in names)]
            for ranking, found in summary[split].items()
        ]
        status(text_table([split, *names], rows))
    feature = task.item.key_feature
    assert feature is not None
    values = task.values.decode(feature, task.items.keys.astype(np.int32)).cast(str).to_list()
    popular = np.argsort(-task.items.positives, kind="stable")[:SHOWN]
    for item, others in zip(popular, nearest(vectors, popular, NEAREST), strict=True):
        status(f"nearest to item {values[item]}: {', '.join(values[x] for x in others)}")
    written = [name for name in (files.USERS, files.ITEMS, files.ARRAY, files.USEARCH)
               if (workdir / name).exists()]  # fmt: skip
    status(f"after {summary['steps']} steps; see {workdir}/{', '.join(written)}")


if __name__ == "__main__":
    run(main)
