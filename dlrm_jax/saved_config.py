"""The config that a checkpoint keeps, from any version of this program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlrm_jax.config import FIELD_TYPES, Config
from dlrm_jax.errors import UserError

# Earlier names of fields, which checkpoints still have.
_RENAMED = {"exchange_dtype": "comm_dtype"}

# Fields that were added to `Config` after the first version of saved configs, in their order, each
# with the value that means what was done before. It stays when the default changes.
_ADDED: dict[str, Any] = {
    "check_copies_every": 0,
    "plateau_factor": 0.0,
    "plateau_patience": 2,
    "patience": 0,
    "validation_examples": 0,
}

VERSION = 1 + len(_ADDED)
"""The version of saved configs, which grows with each field that is added."""


def saved_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that a checkpoint keeps, under the names of this version.

    A field that is newer than the checkpoint gets the value that means what was done before.

    Args:
        fields: fields of a config, or some of them beside others, as JSON gives them.
    """
    return _ADDED | {_RENAMED.get(name, name): value for name, value in fields.items()}


def check_version(checkpoint: Path, metadata: Mapping[str, Any]) -> None:
    """Checks that this program knows all fields of the config that a checkpoint was trained with.

    Args:
        checkpoint: directory of the checkpoint, for messages.
        metadata: metadata of the checkpoint, as `metadata.read_metadata` gives it.

    Raises:
        UserError: a later version has written it.
    """
    unknown = saved_fields(metadata.get("config") or {}).keys() - FIELD_TYPES.keys()
    version = metadata.get("config_version", 1)  # the first ones carried none
    if unknown or version > VERSION:
        has = f"the fields {', '.join(sorted(unknown))}" if unknown else f"version {version}"
        raise UserError(
            f"checkpoint {checkpoint} was written by a later version of this program: its config "
            f"has {has}, which this one lacks; use that version"
        )


def trained_config(checkpoint: Path, metadata: Mapping[str, Any]) -> Config:
    """The config that a checkpoint was trained with.

    Args:
        checkpoint: directory of the checkpoint, for messages.
        metadata: metadata of the checkpoint, as `metadata.read_metadata` gives it.

    Raises:
        UserError: there is no config, it lacks fields, or a later version has written it.
    """
    check_version(checkpoint, metadata)
    saved = metadata.get("config") or {}
    fields = saved_fields(saved)
    if missing := FIELD_TYPES.keys() - fields.keys():
        what = ", ".join(sorted(missing)) if saved else "its model"
        raise UserError(
            f"checkpoint {checkpoint} doesn't describe {what}: expected one that "
            f"python -m dlrm_jax train wrote"
        )
    # JSON has lists for tuples.
    given: Any = {x: tuple(y) if isinstance(y, list) else y for x, y in fields.items()}
    return Config(**given)
