"""Batches of a fixed size from a stream, each with the position behind it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int32

from dlrm_jax.data.batches import Batch
from dlrm_jax.data.preprocessing.raw_ids import RawIds
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.stream.position import Position, Progress
from dlrm_jax.stream.rows import Rows, rows_of
from dlrm_jax.stream.source import Segment, Source, UnreachableError

_PAUSE = 0.2  # seconds between two looks for a new segment
_PATIENCE = 60.0  # seconds for which a source may be out of reach
_MICROSECONDS = 1_000_000  # of a second
_LEAST_WEIGHT = np.finfo(np.float32).tiny  # devices take smaller ones for 0

Encoder = Callable[[RawIds], Int32[np.ndarray, "B C"]]
"""A function of raw ids that gives rows of tables: those of this process's examples of a batch.
Batches come to it in order."""


@dataclasses.dataclass(frozen=True)
class StreamBatch:
    """A batch of a stream.

    Attributes:
        batch: this process's examples, B/P of them, with rows of tables in place of their ids.
        rows: all B examples.
        progress: part of the stream up to the end of the batch.
    """

    batch: Batch
    rows: Rows
    progress: Progress


def stream_batches(
    source: Source,
    schema: Schema,
    encoder: Encoder,
    batch_size: int,
    progress: Progress,
    own: slice = slice(None),
    pause: Callable[[float], None] = time.sleep,
    tell_time: Callable[[int], None] = lambda seconds: None,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[StreamBatch | float]:
    """Yields the batches behind a position, in order, across the borders of segments; without end.

    Which rows are in a batch depends on the stream and the batch size alone, however the rows are
    cut into segments: each of several processes reads the stream by itself. Rows at the end that
    don't fill a batch wait for more; they aren't part of any progress. A batch whose examples all
    have weight 0 has no loss, and is left out.

    Args:
        source: the stream.
        schema: meaning of the columns.
        encoder: function that gives ids rows of tables.
        batch_size: number of examples of a batch, B.
        progress: part of the stream that was trained on before.
        own: examples of a batch that this process trains on, see `own_examples`.
        pause: function that waits so many seconds before the next look for a segment.
        tell_time: function that is told of the latest time of a row so far, in whole seconds since
            1970, before the encoder gets a batch; earlier rows don't take it back.
        say: function that shows a line of text to the user.

    Yields:
        Batches; and after every look for a segment that isn't there yet, the seconds without one
        while the source could be reached.

    Raises:
        UserError: see `Source.next`; a source may be out of reach for a minute.
    """
    waiting: list[Rows] = []
    read, examples = progress.position, progress.examples  # the latter before those that wait
    latest = progress.time
    last = time.monotonic()
    reachable = _Reachable(source, say)
    while True:
        segment = reachable.next(read)
        if segment is None:
            now = time.monotonic()
            if reachable.failed_since:
                last = now  # nobody knows whether there are new segments
            yield now - last
            pause(_PAUSE)
            continue
        note, row, consumed = segment.note, 0, source.consumed
        if read and not read.ended:  # a part of it was read before
            row = read.row
        for part in rows_of(segment, schema, row):
            row += len(part)
            rows = Rows.joined([*waiting, part])
            full = len(rows) - len(rows) % batch_size
            for start in range(0, full, batch_size):
                end = start + batch_size
                place = row - (len(rows) - end)  # less than a batch waited, so it's in this part
                position, of_message = segment.position(place)
                examples += batch_size
                given = rows[start:end]
                if given.sample_weights.max() < _LEAST_WEIGHT:
                    say(f"the {batch_size} examples up to {position} all have weight 0: left out")
                    continue
                latest = max(latest, int(given.times.max()) // _MICROSECONDS)
                tell_time(latest)
                behind = Progress(position, consumed or (of_message,), examples, latest)
                yield StreamBatch(_encoded(given[own], encoder), given, behind)
            waiting = [rows[full:]]
        read = Position(note.name, note.rows, ended=True)
        last = time.monotonic()


class _Reachable:
    """A source that may be out of reach for a while."""

    def __init__(self, source: Source, say: Callable[[str], None]):
        self._source, self._say = source, say
        self.failed_since = 0.0  # 0 while it answers

    def next(self, after: Position | None) -> Segment | None:
        """The next segment; None if there is none yet, or while the source doesn't answer."""
        try:
            segment = self._source.next(after)
        except UnreachableError as error:
            now = time.monotonic()
            if not self.failed_since:
                self._say(f"warning: {error}; waits for {_PATIENCE:.0f} seconds")
                self.failed_since = now
            if now - self.failed_since >= _PATIENCE:
                raise
            return None
        if self.failed_since:
            self._say("the stream can be reached again")
            self.failed_since = 0.0
        return segment


def _encoded(rows: Rows, encoder: Encoder) -> Batch:
    return Batch(rows.dense, encoder(rows.raw), rows.labels, rows.sample_weights)
