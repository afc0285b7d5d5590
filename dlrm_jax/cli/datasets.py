"""The data of a program: what ``--data`` names, or examples that are generated."""

from __future__ import annotations

from pathlib import Path

from absl import flags

from dlrm_jax.cli.program import FLAGS
from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset
from dlrm_jax.data.check import check_ids
from dlrm_jax.data.dataset import load_dataset
from dlrm_jax.errors import UserError
from dlrm_jax.files import cache_directory
from dlrm_jax.training.build import for_data, generate_data

_OF_GENERATED = (
    "table_rows", "bag_lengths", "dense_features", "examples", "zipf_exponent", "teacher"
)  # fmt: skip


def define_data_flag() -> None:
    """``--data``, beside the flags of the config."""
    flags.DEFINE_string("data", None, "a raw Criteo file, or a directory of prepared arrays; "
                        "without it, examples are generated")  # fmt: skip


def check_data_flags() -> None:
    """Flags that the data leave nothing to say are refused.

    Raises:
        UserError: naming the flag.
    """
    if not FLAGS.data:
        if FLAGS["min_count"].present:
            raise UserError("--min_count has no effect without --data")
        return
    for flag in _OF_GENERATED:
        if FLAGS[flag].present:
            raise UserError(f"--{flag} has no effect with --data: the data decide")
    if FLAGS["min_count"].present and Path(FLAGS.data).is_dir():
        raise UserError("--min_count has no effect with a directory: it was prepared with its own")


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
