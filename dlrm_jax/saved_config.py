"""The config that a checkpoint or a file keeps, from any version of this program."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dlrm_jax.config import FIELD_TYPES, Config
from dlrm_jax.config_fields import check_field
from dlrm_jax.errors import UserError
from dlrm_jax.json_objects import without_repeats

# Earlier names of fields, which checkpoints still have.
_RENAMED = {"exchange_dtype": "comm_dtype"}

# Fields that were added to `Config` after the first version of saved configs, in their order, each
# with the value that means what was done before. It stays when the default changes.
_ADDED: dict[str, Any] = {
    "check_copies_every": 0,
    "features": (),
    "plateau_factor": 0.0,
    "plateau_patience": 2,
    "patience": 0,
    "validation_examples": 0,
    "table_l2": 0.0,
    "table_l2_rows": "touched",
    "dense_l2": 0.0,
    "numeric_embedding": "none",
    "dropout": 0.0,
    "normalization": "none",
    "unseen_rate": 0.0,
    "metrics": (),
    "label_weights": (),
    "labels": (),
    "shard_dense_optimizer": False,
    "dense_comm_dtype": "float32",
    "pipelined": False,
    "dynamic_ids": (),
    "product_precision": "float32",
    "host_tables": (),
}

VERSION = 1 + len(_ADDED)
"""The version of saved configs, which grows with each field that is added."""


def saved_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that a checkpoint keeps, under the names of this version.

    A field that is newer than the checkpoint gets the value that means what was done before, and
    options that a model didn't read are left out.

    Args:
        fields: fields of a config, or some of them beside others, as JSON gives them.
    """
    found = _ADDED | {_RENAMED.get(name, name): value for name, value in fields.items()}
    options = found.get("model_options", ())
    if options and found.get("model") == "masknet" and "structure=parallel" not in options:
        # At first it took those of parallel blocks with serial ones, too, and now refuses them.
        read = [x for x in options if x.partition("=")[0] not in ("blocks", "block_width")]
        found["model_options"] = type(options)(read)
    return found


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


_OF_TABLES = (
    "embedding_dim", "compression", "compress_above", "collisions", "composition", "temperature",
)  # fmt: skip

_OF_LAYERS = (
    "model", "model_options", "pooling", "bottom_mlp", "top_mlp", "interaction", "self_interaction",
    "dense_features",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class OtherShapes:
    """Settings of shapes that a checkpoint has otherwise than a config, as messages name them.

    Attributes:
        tables: settings that give tables their shapes; empty if none differs.
        layers: settings that give layers their shapes, those of tables among them.
    """

    tables: str = ""
    layers: str = ""


def other_shapes(config: Config, metadata: Mapping[str, Any]) -> OtherShapes:
    """The settings of shapes that a checkpoint has otherwise than a config.

    Args:
        config: config of a run.
        metadata: metadata of the checkpoint, as `metadata.read_metadata` gives it.
    """
    saved = saved_fields(metadata.get("config") or {})

    def differing(names: Iterable[str]) -> str:
        here = {name: _written(getattr(config, name)) for name in names}
        there = {name: _written(saved[name]) for name in here if name in saved}
        return ", ".join(
            f"{name} is {there[name]} there and {value} here"
            for name, value in here.items()
            if there.get(name, value) != value
        )

    return OtherShapes(differing(_OF_TABLES), differing((*_OF_TABLES, *_OF_LAYERS)))


def _written(value: Any) -> str:
    """A value as a flag writes it."""
    return ",".join(map(str, value)) or "empty" if isinstance(value, list | tuple) else str(value)


VERSION_KEY = "config_version"
"""The key of the version in a config file that this program has written."""


def file_fields(path: Path) -> dict[str, Any]:
    """The fields that a config file sets, with tuples for JSON's lists.

    A file is one JSON object with fields of `Config`. If it has ``config_version``, as files of
    `file_text` do, fields that are newer than it get the value that means what was done before.

    Args:
        path: the file.

    Raises:
        UserError: it can't be read, isn't such an object, or a field is unknown or not of its type.
    """
    try:
        content: Any = json.loads(
            path.read_text(encoding="utf-8-sig"), object_pairs_hook=without_repeats
        )
    except OSError as error:
        raise UserError(f"config file {path} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"config file {path}: expected JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(
            f'config file {path}: expected an object such as {{"learning_rate": 0.1}}, got '
            f"{json.dumps(content)[:80]}"
        )
    given: dict[str, Any] = content
    version = given.pop(VERSION_KEY, VERSION)
    if type(version) is not int or version < 1:
        raise UserError(f"config file {path}: {VERSION_KEY}: expected a number, got {version!r}")
    if version > VERSION:
        raise UserError(
            f"config file {path} was written by a later version of this program, with "
            f"{VERSION_KEY} {version}, where this one knows {VERSION}; use that version"
        )
    fields: dict[str, Any] = dict(list(_ADDED.items())[version - 1 :])
    for name, value in given.items():
        fields[_RENAMED.get(name, name)] = tuple(value) if isinstance(value, list) else value
    described = {each.name: each for each in dataclasses.fields(Config)}
    for name, value in fields.items():
        if name not in described:
            close = difflib.get_close_matches(name, described)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise UserError(f"config file {path}: there is no setting {name!r}{hint}")
        try:
            check_field(described[name], value, FIELD_TYPES[name])
        except UserError as error:
            raise UserError(f"config file {path}: {error}") from error
    return fields


def is_ours(path: Path) -> bool:
    """Whether a file has what `file_text` gives."""
    try:
        return VERSION_KEY in json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def file_text(config: Config, without: Iterable[str] = ()) -> str:
    """The text of a config file, which `file_fields` reads.

    Args:
        config: config to write.
        without: names of fields to leave out, such as those that the data decide.
    """
    left_out = set(without)
    fields = {x: y for x, y in dataclasses.asdict(config).items() if x not in left_out}
    return json.dumps({VERSION_KEY: VERSION, **fields}, indent=1) + "\n"
