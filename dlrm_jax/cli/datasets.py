"""The data of a program: what ``--data`` names, or examples that are generated."""

from __future__ import annotations

from pathlib import Path

from absl import flags

from dlrm_jax.cli.flags import FLAGS, refuse
from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset
from dlrm_jax.data.check import check_ids
from dlrm_jax.data.dataset import load_dataset
from dlrm_jax.files import cache_directory
from dlrm_jax.training.build import for_data, generate_data

_OF_GENERATED = (
    "table_rows", "bag_lengths", "dense_features", "examples", "zipf_exponent", "teacher"
)  # fmt: skip


def define_data_flag() -> None:
    """The flag ``--data``."""
    flags.DEFINE_string(
        "data",
        None,
        "Raw Criteo file, or directory that `dlrm_jax preprocess` made; without it, examples are "
        "generated; such as train.txt.",
    )


def check_data_flags() -> None:
    """Refuses flags that the data decide.

    Raises:
        UserError: one of them is on the command line.
    """
    if not FLAGS.data:
        refuse(["min_count"], "without --data")
        return
    refuse(_OF_GENERATED, "with --data: the data decide")
    if Path(FLAGS.data).is_dir():
        refuse(["min_count"], "with a directory: it was prepared with its own")


def load_data(config: Config) -> tuple[Config, Dataset]:
    """The data, and the config with the tables that it needs.

    Raises:
        UserError: the data can't be read, or hold an id that its table doesn't have.
    """
    if FLAGS.data:
        data = load_dataset(Path(FLAGS.data), cache_directory() / "criteo", config.min_count)
        config = for_data(config, data)
    else:
        data = generate_data(config)
    for name, split in data.splits.items():
        check_ids(split, data.table_rows, data.bag_lengths, name)
    return config, data
