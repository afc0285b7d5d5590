"""The flag ``--continue_from``: a run that continues that of an earlier day."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from absl import flags

from dlrm_jax.cli.config_flags import overridden_saved
from dlrm_jax.cli.flags import FLAGS, refuse
from dlrm_jax.config import MAY_CHANGE, Config
from dlrm_jax.errors import UserError
from dlrm_jax.inference.model_checks import check_functions, check_model
from dlrm_jax.inference.runs import find_checkpoint
from dlrm_jax.run_continued import check_data, verdict
from dlrm_jax.run_data import is_new
from dlrm_jax.saved_config import trained_config
from dlrm_jax.training.metadata import read_metadata

OF_NEW_DAYS = MAY_CHANGE | {
    "loss", "class_weights", "learning_rate", "eps", "warmup_steps", "decay_start", "decay_steps",
    "plateau_factor", "plateau_patience", "clip_norm", "accumulation_steps", "batch_size",
    "validation_examples", "seed", "shuffle_window", "min_count", "compress_above", "comm_dtype",
    "dense_comm_dtype", "stochastic_rounding", "compute_dtype", "product_precision",
    "frozen_tables",
    "table_l2", "table_l2_rows", "dense_l2", "dropout", "unseen_rate", "label_weights", "metrics",
}  # fmt: skip
"""Fields that a run may have otherwise than the one that it continues: no array changes its shape
or its meaning."""


def define_continue_flag() -> None:
    """The flag ``--continue_from``."""
    flags.DEFINE_string(
        "continue_from",
        None,
        "Workdir or checkpoint of a run that a new run continues, on --data that "
        "`dlrm_jax preprocess --grow` made; its config is that of the checkpoint, changed by "
        "flags; such as runs/monday.",
    )


def check_continue_flags() -> None:
    """Refuses flags that nothing would read beside ``--continue_from``."""
    if not FLAGS.continue_from:
        return
    refuse(["warm_start", "warm_start_names"], "with --continue_from, which keeps everything")
    refuse(["preset", "config"], "with --continue_from: the checkpoint has the config")
    if not FLAGS.data:
        raise UserError(
            "--continue_from needs --data, which python -m dlrm_jax preprocess --grow made"
        )


def continued_config(workdir: Path) -> Config:
    """The config of a run that continues another one: that one's; its own once it has begun.

    Args:
        workdir: directory of the run.

    Raises:
        UserError: there is no checkpoint, the data don't continue its, or a flag contradicts it.
    """
    source, new = Path(FLAGS.continue_from), is_new(workdir)
    if new and not source.is_dir():
        raise UserError(
            f"--continue_from: expected the workdir of a run or a checkpoint, there is no {source}"
        )
    checkpoint = find_checkpoint(source if new else workdir)
    metadata = read_metadata(checkpoint)
    saved = trained_config(checkpoint, metadata)
    check_data(Path(FLAGS.data), checkpoint, metadata)
    if FLAGS.model is None:
        check_model(checkpoint, saved, None)
    check_functions(checkpoint, saved, FLAGS.loss, FLAGS.metrics)
    if FLAGS.epochs is not None and FLAGS.steps is None:
        saved = dataclasses.replace(saved, steps=0)  # the flag says the length in another unit
    if FLAGS.min_count is None:  # of the preparation of a raw file
        saved = dataclasses.replace(saved, min_count=1)
    return overridden_saved(saved, checkpoint, data_decide=True, may_change=OF_NEW_DAYS)


def with_earlier_names(config: Config, given: Config) -> Config:
    """The config with the data's tables, under the names that they have in an earlier checkpoint.

    Args:
        config: config with the tables of the data.
        given: config of the checkpoint. One of an earlier version calls them C1, C2, ….
    """
    return config if given.features else dataclasses.replace(config, features=())


def before_rows(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The metrics before the update, by what the table of results calls them."""
    return {f"{name}, before": found for name, found in summary.get("before", {}).items()}


def told(summary: dict[str, Any]) -> str | None:
    """Whether the update is better than none; None if no split tells it."""
    before = summary.get("before", {})
    for name in ("test", "validation"):
        if name in before and name in summary:
            return f"{name}: {verdict(before[name], summary[name])}"
    return None
