"""A flag for each field of the config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from absl import flags

from dlrm_jax.cli.flags import FLAGS, define_mesh, define_numbers, refuse
from dlrm_jax.config import FIELD_TYPES, MAY_CHANGE, Config
from dlrm_jax.embedding.optimizer import OPTIMIZERS
from dlrm_jax.errors import UserError
from dlrm_jax.presets import PRESETS
from dlrm_jax.training.build import check_table_settings
from dlrm_jax.training.config_data import OF_DATA
from dlrm_jax.training.model import unread

NO_EFFECT = "No effect"
"""Begin of the sentence of a flag that a program refuses."""

OF_WHOLE_RUNS = (
    "steps", "epochs", "log_every", "eval_every", "checkpoint_every", "check_copies_every",
    "keep_checkpoints", "best_metric", "target_auc", "evaluation_batch_size", "examples",
    "shuffle_window", "min_count", "patience", "plateau_factor", "plateau_patience",
    "validation_examples", "metrics", "labels", "label_weights", "unseen_rate",
)  # fmt: skip
"""Fields that a program doesn't read if it trains on no data, or for some steps only."""


_DEFINE: dict[Any, Callable[[str, Any, str], Any]] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def define_run_flags(default_preset: str, without: Mapping[str, str] | None = None) -> None:
    """``--mesh``, ``--preset``, and for each field of `Config` a flag that overrides it.

    ``without`` names flags that the program refuses, and why; ``--emulate`` may be one of them.
    """
    define_mesh()
    flags.DEFINE_enum(
        "preset", default_preset, list(PRESETS), "Configuration that the other flags change."
    )
    for field in dataclasses.fields(Config):
        if field.name == "optimizer":
            flags.DEFINE_enum(field.name, None, list(OPTIMIZERS), field.metadata["text"])
        else:
            define_field(field, FIELD_TYPES[field.name], None)
    for name, why in (without or {}).items():
        FLAGS[name].help = f"{NO_EFFECT}: {why}"


def define_field(field: dataclasses.Field[Any], kind: Any, default: Any) -> None:
    """A flag for a field that `config_fields.field` has made, of a type and with a default."""
    name, text = field.name, field.metadata["text"]
    if get_origin(kind) is Literal:
        flags.DEFINE_enum(name, default, list(get_args(kind)), text)
    elif get_origin(kind) is tuple and get_args(kind)[0] is not str:
        define_numbers(name, default, text, get_args(kind)[0])
    elif get_origin(kind) is tuple:
        flags.DEFINE_list(name, default, text)
    else:
        _DEFINE[kind](name, default, text)


def with_flags(config: Config) -> Config:
    """The config with the fields replaced that the command line names; see `check_read`.

    Raises:
        UserError: nothing would read one of them, or it has no effect on the tables.
    """
    config = overridden(config)
    check_read([config])
    check_table_settings(config)
    return config


def check_read(configs: Sequence[Config]) -> None:
    """Refuses flags that none of the configs reads.

    It imports their models' classes. A user's module may use JAX as it is imported, and so must
    come after `start.start`, which asks for devices.
    """
    by_name = [unread(config) for config in configs]
    for name, why in by_name[0].items():
        if all(name in each for each in by_name):
            refuse([name], why)


def overridden(config: Config, beneath: Mapping[str, Any] | None = None) -> Config:
    """The config with the fields replaced that the command line names, read or not.

    ``beneath`` has fields that are replaced where no flag does it, all together.

    Raises:
        UserError: the program refuses one of them, or a value isn't allowed.
    """
    for name in ("mesh", "emulate", *FIELD_TYPES):
        text = FLAGS[name].help or ""
        if text.startswith(NO_EFFECT):
            refuse([name], text.removeprefix(NO_EFFECT))
    return dataclasses.replace(config, **(dict(beneath or {}) | _given()))


def overridden_saved(
    saved: Config,
    checkpoint: Path,
    data_decide: bool,
    may_change: frozenset[str] = MAY_CHANGE,
) -> Config:
    """The config of a checkpoint with the fields replaced that the command line names.

    Placements and plan, which are those of a mesh, aren't taken from the checkpoint.

    Args:
        saved: config that the checkpoint was trained with.
        checkpoint: directory of the checkpoint, for messages.
        data_decide: whether the data decide the fields of `OF_DATA`.
        may_change: fields that flags may change.

    Raises:
        UserError: a flag, or the preset if one is given, has another value than the checkpoint,
            and may not have.
    """
    given = _given()
    fixed = sorted(FIELD_TYPES.keys() - may_change - (OF_DATA if data_decide else set()))
    of_preset = dataclasses.asdict(PRESETS[FLAGS.preset]) if FLAGS["preset"].present else {}
    for name in fixed:
        was = getattr(saved, name)
        if given.get(name, was) != was:
            raise UserError(
                f"--{name}: {checkpoint} was trained with {was}, got {given[name]}; leave it out: "
                f"the checkpoint has the config"
            )
        if name not in given and of_preset.get(name, was) != was:
            raise UserError(
                f"--preset: {checkpoint} was trained with {name} {was}, and {FLAGS.preset} has "
                f"{of_preset[name]}; leave it out: the checkpoint has the config"
            )
    return dataclasses.replace(saved, **{"placements": (), "plan": "", **given})


def _given() -> dict[str, Any]:
    """The values of the config's flags on the command line."""
    given = {name: FLAGS[name].value for name in FIELD_TYPES if FLAGS[name].value is not None}
    return {x: tuple(y) if isinstance(y, list) else y for x, y in given.items()}
