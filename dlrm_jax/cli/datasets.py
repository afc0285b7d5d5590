"""The data of a program: what ``--data`` names, or examples that are generated."""

from __future__ import annotations

from pathlib import Path

from absl import flags

from dlrm_jax.cli.flags import FLAGS, refuse
from dlrm_jax.errors import UserError

OF_GENERATED = (
    "table_rows", "features", "bag_lengths", "dense_features", "examples", "zipf_exponent",
    "teacher",
)  # fmt: skip
"""Fields of the config that describe generated data."""


def define_data_flag() -> None:
    """The flag ``--data``."""
    flags.DEFINE_string(
        "data",
        None,
        "Raw Criteo file, or directory that `dlrm_jax preprocess` made; without it, examples are "
        "generated; such as train.txt.",
    )


def check_data_flags() -> None:
    """Refuses flags that the data decide."""
    if FLAGS.data == "":
        raise UserError("--data: expected a file or a directory, got nothing")
    if not FLAGS.data:
        refuse(["min_count", "unseen_rate"], "without --data")
        return
    refuse(OF_GENERATED, "with --data: the data decide")
    if Path(FLAGS.data).is_dir():
        refuse(["min_count"], "with a directory: it was prepared with its own")
