"""Adds the schema of a stream to a checkpoint of an earlier version, which didn't note it.

Predictions and exports need it. A run notes it in each checkpoint that it writes, but writes none
where the stream has ended, or all steps are done.
"""

from __future__ import annotations

import json

from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.files import move_into_place
from dlrm_jax.inference.noted_ids import SCHEMA, fields_of
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.replay import Replay
from dlrm_jax.training.rows_by_id import STREAM
from dlrm_jax.workspaces import workspace


def with_schema(replay: Replay, schema: Schema) -> Replay:
    """The same state, whose checkpoint has the schema if no later one is certain to come.

    The workdir must be locked. The checkpoint's metadata are replaced in one step.

    Args:
        replay: checkpoint, and its journal as far as it was applied.
        schema: schema of the stream, by which the program's own encoder gave rows to ids.

    Raises:
        UserError: the metadata can't be read or written; they are as they were.
    """
    checkpoint = replay.checkpoint
    metadata = read_metadata(checkpoint)
    of_stream = metadata.get(STREAM) or {}
    # Entries name the hash of the metadata. With one applied, the run ends with a new checkpoint.
    if SCHEMA in of_stream or replay.number or replay.damage:
        return replay
    metadata[STREAM] = {**of_stream, SCHEMA: fields_of(schema)}
    try:
        with workspace(checkpoint) as directory:  # beside it: a checkpoint has its own files only
            written = directory / "metadata.json"
            written.write_text(json.dumps(metadata, indent=1), encoding="utf-8")
            move_into_place(written, checkpoint / written.name)
    except OSError as error:
        raise UserError(
            f"cannot add the schema of the stream to the checkpoint {checkpoint}: {error}; it is "
            f"as it was"
        ) from error
    return Replay(checkpoint)
