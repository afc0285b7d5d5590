"""How the ids of a run become rows: what its config, its tables and its schema say together."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlrm_jax.artifact.id_notes import HashNote, IdsNote, KeysNote
from dlrm_jax.artifact.key_files import DIRECTORY
from dlrm_jax.artifact.notes import FeatureNote
from dlrm_jax.config import Config
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.dynamic_ids.id_columns import map_groups
from dlrm_jax.embedding import EmbeddingCollection
from dlrm_jax.errors import UserError
from dlrm_jax.feature_names import file_name
from dlrm_jax.training.rows_by_id import STREAM
from dlrm_jax.training.saved_id_maps import NAME

SCHEMA = "schema"
"""The key in a checkpoint's part of a stream that has the fields of its schema."""


def schema_of_stream(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """The fields of the schema of a checkpoint's stream.

    Args:
        path: directory of the checkpoint, for messages.
        metadata: result of `metadata.read_metadata`.

    Returns:
        None for a run of prepared data, and for one of an earlier version, whose ids are rows.

    Raises:
        UserError: it has dynamic ids, and an earlier version or another encoder gave them rows.
    """
    fields = metadata.get(STREAM, {}).get(SCHEMA)
    if fields is None and STREAM in metadata and NAME in metadata:
        raise UserError(
            f"{path}: expected a checkpoint that has the schema of its stream, got one of an "
            f"earlier version, or of a program with an encoder of its own; run the same train "
            f"command again, which adds it"
        )
    return fields


def fields_of(schema: Schema) -> dict[str, Any]:
    """The fields of a schema as JSON has them, for `Schema.from_fields`; without defaults."""
    plain = dataclasses.asdict(Schema("label", ("id",)))
    needed = ("label", "categorical")
    given = dataclasses.asdict(schema).items()
    kept = {name: value for name, value in given if name in needed or value != plain[name]}
    return json.loads(json.dumps(kept))


def note_ids(
    config: Config, collection: EmbeddingCollection, schema: Mapping[str, Any] | None
) -> IdsNote | None:
    """How ids become rows; None if they are rows.

    Args:
        config: config of the run.
        collection: its tables, with their dynamic ids.
        schema: fields of the schema of a stream; None for prepared data.
    """
    maps = []
    groups = map_groups(collection.tables, collection.features, collection.lookups)
    for group in groups:
        table = collection.tables[group.tables[0]]
        assert table.ids
        file = f"{DIRECTORY}/{file_name(table.name)}"
        maps.append(
            KeysNote(
                table.name,
                group.tables,
                group.features,
                table.rows,
                table.ids.defaults,
                config.seed,
                f"{file}.keys.npy",
                f"{file}.live.npy",
            )
        )
    if schema is None:
        return IdsNote(maps=tuple(maps)) if maps else None
    own, dynamic = Schema.from_fields(schema), {x for group in groups for x in group.features}
    hashed = tuple(
        HashNote(name, own.categorical[owner], rows)
        for name, owner, rows in zip(own.categorical, own.owners, config.table_rows, strict=True)
        if name not in dynamic
    )
    return IdsNote(dict(schema), hashed, tuple(maps))


def note_features(
    config: Config, collection: EmbeddingCollection, note: IdsNote | None
) -> tuple[FeatureNote, ...]:
    """The features of a run; they have as many ids as a vocabulary, or as their tables have rows.

    Args:
        config: config of the run.
        collection: its tables.
        note: way by which ids become rows; None if they are rows.
    """
    rows = dict(zip(config.table_names, config.table_rows, strict=True))
    if note is None or note.schema is not None:
        tables = [(x.feature, collection.tables[x.table]) for x in collection.lookups]
        rows |= {feature: table.rows for feature, table in tables if table.ids}
    lengths = zip(config.table_names, config.table_bag_lengths, strict=True)
    return tuple(FeatureNote(name, rows[name], length) for name, length in lengths)
