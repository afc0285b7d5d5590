"""Flags of a run that is published while it trains."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from absl import flags

from dlrm_jax.artifact.row_formats import RowFormat
from dlrm_jax.cli.flags import FLAGS, refuse_unless
from dlrm_jax.config import Config
from dlrm_jax.console import status
from dlrm_jax.processes import on_process_0
from dlrm_jax.training.host_memory import check_host_tables
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.publication import Publication

if TYPE_CHECKING:
    from dlrm_jax.data.preprocessing.schema import Schema  # with Polars


_PATIENCE = 10.0  # seconds in which the locks of a process that has been killed are given back


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


def published(
    workdir: Path,
    config: Config,
    learner: Learner,
    fingerprint: str,
    kept_negatives: float = 1.0,
    schema: Schema | None = None,
) -> AbstractContextManager[Publication | None]:
    """Context of what publishes a run, which is entered when the workdir is the run's own.

    Args:
        workdir: directory of the run.
        config: config of the run.
        learner: learner of the run.
        fingerprint: fingerprint of its data.
        kept_negatives: share of the training examples of label 0 that preparation has kept.
        schema: meaning of the columns of a stream; None for prepared data.

    Returns:
        A context of what publishes the run, or of None if ``--publish`` isn't given.

    Raises:
        UserError: the directory has other files, or tables lie in host memory.
    """
    if not FLAGS.publish:
        return contextlib.nullcontext()
    check_host_tables(config, {"publish": True})
    from dlrm_jax.publishing.live_model import LiveModels
    from dlrm_jax.publishing.published import check_directory
    from dlrm_jax.publishing.publisher import Publisher, Settings
    from dlrm_jax.training.touched_rows import touched_rows

    name = workdir.resolve().name
    directory = Path(FLAGS.publish)
    # A standby is told now, and not when it takes over.
    on_process_0(lambda: check_directory(directory, workdir))
    settings = Settings(
        directory, FLAGS.publish_every_seconds, name, FLAGS.publish_tables,
        patience=_PATIENCE if FLAGS.standby else 0,
    )  # fmt: skip
    models = LiveModels(config, learner, fingerprint, kept_negatives, workdir, schema)
    return Publisher(settings, models, touched_rows(learner), status)
