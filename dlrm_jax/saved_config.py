"""The config that a checkpoint keeps, from any version of this program."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlrm_jax.config import FIELD_TYPES, Config
from dlrm_jax.errors import UserError

# Earlier names of fields, which checkpoints still have.
_RENAMED = {"exchange_dtype": "comm_dtype"}


def saved_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that a checkpoint keeps, under the names of this version.

    A field that is newer than the checkpoint gets its default, which means what was done before.

    Args:
        fields: fields of a config, or some of them beside others, as JSON gives them.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}
    return defaults | {_RENAMED.get(name, name): value for name, value in fields.items()}


def trained_config(checkpoint: Path, metadata: Mapping[str, Any]) -> Config:
    """The config that a checkpoint was trained with.

    Args:
        checkpoint: directory of the checkpoint, for messages.
        metadata: metadata of the checkpoint, as `metadata.read_metadata` gives it.

    Raises:
        UserError: the config is missing, or has fields that this program lacks.
    """
    fields = metadata.get("config")
    if fields is None:
        raise UserError(
            f"checkpoint {checkpoint} doesn't describe its model: expected one that "
            f"python -m dlrm_jax train wrote"
        )
    fields = saved_fields(fields)
    if unknown := fields.keys() - FIELD_TYPES.keys():
        raise UserError(
            f"checkpoint {checkpoint} was written by a later version of this program: its config "
            f"has the fields {', '.join(sorted(unknown))}, which this one lacks; predict with that "
            f"version"
        )
    # JSON has lists for tuples.
    given: Any = {x: tuple(y) if isinstance(y, list) else y for x, y in fields.items()}
    return Config(**given)
