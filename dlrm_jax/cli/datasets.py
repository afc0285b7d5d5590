"""The data of a program: what ``--data`` names, or examples that are generated."""

from __future__ import annotations

from pathlib import Path

from absl import flags

from dlrm_jax.cli.program import FLAGS
from dlrm_jax.errors import UserError

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
