"""Flags of a run that is published while it trains."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import jax
from absl import flags

from dlrm_jax.artifact.row_formats import RowFormat
from dlrm_jax.cli.flags import FLAGS, refuse_unless
from dlrm_jax.config import Config
from dlrm_jax.console import status
from dlrm_jax.data.arrays import Dataset
from dlrm_jax.errors import UserError
from dlrm_jax.run import Options
from dlrm_jax.training.learner import Learner


def define_publish_flags() -> None:
    """``--publish`` and its settings."""
    flags.DEFINE_string(
        "publish",
        None,
        "Directory that the model is published into while it trains, for 'serve DIR --watch=1'; "
        "such as models.",
    )
    flags.DEFINE_float(
        "publish_every_seconds",
        60,
        "Least seconds between two publications; such as 5.",
        0,
        1e9,
    )
    flags.DEFINE_enum(
        "publish_tables",
        "float32",
        [*get_args(RowFormat)],
        "How rows of published tables are stored.",
    )


def check_publish_flags() -> None:
    """Refuses settings of publications without ``--publish``."""
    refuse_unless(FLAGS.publish, "--publish", "publish_every_seconds", "publish_tables")


@contextlib.contextmanager
def published(
    options: Options, config: Config, data: Dataset, learner: Learner
) -> Iterator[Options]:
    """Context of a run that is published, if ``--publish`` is given.

    Yields:
        The options, with what publishes the run.

    Raises:
        UserError: the run has several processes or dynamic ids, or the directory is in use or has
            other files.
    """
    if not FLAGS.publish:
        yield options
        return
    if jax.process_count() > 1:
        raise UserError(
            f"--publish: expected a run in one process, got {jax.process_count()}; publish "
            f"checkpoints with dlrm_jax export, or train in one process"
        )
    if config.dynamic_ids:
        raise UserError(
            f"--publish: expected tables with fixed ids, got --dynamic_ids="
            f"{','.join(config.dynamic_ids)}; publish checkpoints with dlrm_jax export"
        )
    from dlrm_jax.publishing.live_model import LiveModels
    from dlrm_jax.publishing.publisher import Publisher, Settings
    from dlrm_jax.training.touched_rows import touched_rows

    assert options.workdir
    name = options.workdir.resolve().name
    settings = Settings(
        Path(FLAGS.publish), FLAGS.publish_every_seconds, name, FLAGS.publish_tables
    )
    kept = data.kept_negatives.get("train", 1.0)
    models = LiveModels(config, learner, data.fingerprint, kept, options.workdir)
    with Publisher(settings, models, touched_rows(learner), status) as publisher:
        yield dataclasses.replace(options, publication=publisher)
