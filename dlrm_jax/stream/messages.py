"""Messages of a broker: each has rows, and those that are read at once are one segment.

A message is JSON, a row a line, or the bytes of a Parquet file or an Arrow IPC file. What a row
says depends on its own message alone, whichever others are read with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import polars as pl
import xxhash

from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.stream.json_rows import JsonRows
from dlrm_jax.stream.position import Consumed, Position
from dlrm_jax.stream.segment_frame import MAGIC, frame_of_file
from dlrm_jax.stream.source import Segment


class Message(NamedTuple):
    """A message.

    Attributes:
        place: description for people.
        content: its bytes; a message without any has no rows.
    """

    place: str
    content: bytes


def checksum(content: bytes) -> str:
    """The checksum of a message."""
    return xxhash.xxh3_128_hexdigest(content)


def segment_of(
    messages: Sequence[Message], schema: Schema, name: Callable[[int], str], advice: str
) -> Segment:
    """A segment of the first of some messages, as many as go together.

    A message of another format, or whose columns have other types, is left for the next segment:
    to bring types together would change ids.

    Args:
        messages: messages, at least one.
        schema: meaning of the columns.
        name: function that gives the name of the segment that ends with a message, by its number.
            Names ascend.
        advice: advice on a malformed message.

    Raises:
        UserError: a message is malformed; it is named.
    """
    frames: list[pl.DataFrame] = []
    rows = JsonRows(schema, advice)
    for place, content in messages:
        if content.startswith(MAGIC):
            frame = frame_of_file(place, content, schema, advice) if not len(rows) else None
            if frame is None or (frames and frame.schema != frames[0].schema):
                break
            frames.append(frame)
        elif frames or not rows.add(place, content):
            break
    frame = pl.concat(frames) if frames else rows.frame()
    counts = [len(own) for own in frames] or rows.counts
    ends = tuple(itertools.accumulate(counts))

    def note(i: int) -> Consumed:
        content = messages[i].content
        return Consumed(name(i), counts[i], len(content), checksum(content))

    places = tuple(message.place for message in messages[: len(ends)])
    return Segment(places[0], note(len(ends) - 1), frame, ends, note, places)


def check_same(message: Message, after: Position, known: Sequence[Consumed]) -> None:
    """Checks that a message is the one that was read.

    Args:
        message: message that is there.
        after: position whose last row was the message's.
        known: notes of what was read.

    Raises:
        UserError: it has other bytes.
    """
    for note in known:
        if note.name == after.segment and note.checksum != checksum(message.content):
            raise UserError(
                f"stream: {message.place}: the run has read this message, with {note.size:,} "
                f"bytes, and it has {len(message.content):,} others now, so that it is another "
                f"stream; give another --workdir to start anew"
            )
