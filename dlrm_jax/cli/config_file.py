"""The flag ``--config``: settings from a file, between those of the preset and the other flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from dlrm_jax.cli.config_flags import overridden
from dlrm_jax.cli.datasets import OF_GENERATED
from dlrm_jax.cli.flags import FLAGS
from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.presets import PRESETS, preset
from dlrm_jax.saved_config import file_fields
from dlrm_jax.training.model import unread


def define_config_file() -> None:
    """The flag ``--config``."""
    flags.DEFINE_string(
        "config",
        None,
        "JSON file of settings, as `dlrm_jax search` writes one. They replace those of the preset, "
        "and flags replace them. It counts as your own file: a class or function that it names is "
        "imported; such as best.json.",
    )


def config_of_flags(others: Mapping[str, Any] | None = None) -> Config:
    """The preset, with the settings of the file, with others, and with those of the flags.

    Raises:
        UserError: the file can't be read, or one of its fields is unknown, not of its type, or the
            data's to decide; see also `overridden`.
    """
    fields = file_fields(Path(FLAGS.config)) if FLAGS.config else {}
    if FLAGS.epochs is not None and FLAGS.steps is None:
        fields.pop("steps", None)  # the flag says the length of the run in another unit
    of_data = "--data" if "data" in FLAGS else "--input"  # a command without the flag takes logs
    # Those that are newer than the file are there, too: it had no features.
    decided = [name for name in OF_GENERATED if fields.get(name, ()) != ()]
    if (of_data == "--input" or FLAGS.data) and decided:
        raise UserError(
            f"config file {FLAGS.config}: {decided[0]} has no effect with {of_data}: the data "
            f"decide; take it out of the file"
        )
    return overridden(preset(FLAGS.preset), fields | dict(others or {}))


def check_file_read(configs: Sequence[Config]) -> None:
    """Refuses a setting of the file that none of the configs reads, unless a preset has its value.

    As `config_flags.check_read`, it comes after `start.start`.
    """
    fields = file_fields(Path(FLAGS.config)) if FLAGS.config else {}
    by_name = [unread(config) for config in configs]
    for name, value in fields.items():
        usual = any(getattr(each, name) == value for each in PRESETS.values())
        if not usual and all(name in each for each in by_name):
            raise UserError(
                f"config file {FLAGS.config}: {name} has no effect {by_name[0][name]}; take it out "
                f"of the file"
            )
