"""A Redis stream: each entry has rows, and a segment is the entries that were read at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import xxhash

from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.stream.position import Consumed, Position
from dlrm_jax.stream.segment_frame import frame_of_messages
from dlrm_jax.stream.source import Segment, UnreachableError

FIELD = b"value"
"""The field of an entry that has its rows."""

_ENTRIES = 10_000  # of a segment, at most
_BYTES = 1 << 26  # of a segment, about
_ADVICE = "delete the entry with XDEL"
_SECONDS = 5.0  # for an answer of the server

_Entry = tuple[bytes, dict[bytes, bytes]]


@dataclasses.dataclass(frozen=True)
class _Range:
    """The entries of a segment.

    Attributes:
        number: number of entries that were ever added up to the last one of the segment; less by
            those that were deleted one by one.
        first: id of the first entry, ``milliseconds-number``.
        last: id of the last entry.
    """

    number: int
    first: str
    last: str

    def __str__(self) -> str:
        return f"{self.number:020d}:{self.first}:{self.last}"

    @classmethod
    def of(cls, name: str) -> _Range:
        """The range that a segment's name says.

        Raises:
            UserError: it is the name of a segment of another source.
        """
        try:
            number, first, last = name.split(":")
            return cls(int(number), first, last)
        except ValueError as error:
            raise UserError(
                f"stream: expected a run on a Redis stream, got a position in segment {name!r} of "
                f"another source; give another --workdir"
            ) from error


class RedisStream:
    """The entries of a Redis stream, in the order of their ids.

    The rows of an entry are the field `FIELD`, see `frame_of_messages`. Entries may be trimmed when
    the oldest checkpoint has their rows; entries that were trimmed before they were read are an
    error. It needs Redis 7.

    Args:
        url: ``redis://HOST:PORT/KEY``, as ``redis.Redis.from_url`` takes it but for the name of the
            stream in place of the database, which is ``?db=1``.
        schema: meaning of the columns.
        consumed: segments that were read before, as a checkpoint notes them.

    Raises:
        UserError: the URL has no name of a stream, or the package ``redis`` isn't there.
    """

    def __init__(self, url: str, schema: Schema, consumed: Iterable[Consumed] = ()):
        try:
            import redis
            import redis.exceptions
        except ImportError as error:
            raise UserError(
                f"stream: {error}; streams of Redis need pip install -e '.[redis]'"
            ) from error
        parts = urlsplit(url)
        self._key = parts.path.removeprefix("/")
        if not self._key or not parts.hostname:
            raise UserError(
                f"stream: expected redis://HOST:PORT/KEY, got {parts.scheme}://"
                f"{parts.hostname or ''}{parts.path}; name the stream, such as "
                f"redis://localhost:6379/clicks"
            )
        self._place = f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}/{self._key}"
        self._errors = redis.exceptions
        try:
            self._client = redis.Redis.from_url(
                parts._replace(path="").geturl(),
                socket_timeout=_SECONDS,
                socket_connect_timeout=_SECONDS,
            )
        except ValueError as error:
            raise UserError(f"stream: {self._place}: {error}; mend the URL") from error
        self._schema = schema
        self._last = {each.name: each for each in consumed}
        self._entries = 16

    @property
    def consumed(self) -> tuple[Consumed, ...]:
        """The segment that was read last; entries don't change."""
        return tuple(self._last.values())

    def next(self, after: Position | None) -> Segment | None:
        """The entries behind a position, see `Source`."""
        try:
            if after and not after.ended:
                return self._again(_Range.of(after.segment), after)
            return self._following(_Range.of(after.segment) if after else None)
        except (self._errors.ConnectionError, self._errors.TimeoutError) as error:
            raise UnreachableError(f"stream: {self._place} can't be reached: {error}") from error
        except self._errors.RedisError as error:
            raise UserError(f"stream: {self._place}: {error}") from error

    def _following(self, before: _Range | None) -> Segment | None:
        """The entries behind those of a range, as many as there are."""
        state = self._state(before.last if before else "-")
        if state is None:
            if before:
                raise UserError(self._lost(before, "there is no such stream any more"))
            return None
        info, entries = state
        if "entries-added" not in info:
            raise UserError(f"stream: {self._place}: expected Redis 7 or later; update the server")
        added, gone = info["entries-added"], info["entries-added"] - info["length"]
        if before:
            if added < before.number:
                raise UserError(self._lost(before, f"it has had {added:,} entries"))
            if entries and entries[0][0].decode() == before.last:
                entries = entries[1:]
            elif gone > before.number:
                trimmed = gone - before.number
                raise UserError(self._lost(before, f"{trimmed:,} later ones are gone, unread"))
        read_all = len(entries) <= self._entries
        entries = entries[: self._entries]
        if not entries:
            return None
        number = added if read_all else (before.number if before else gone) + len(entries)
        name = _Range(number, entries[0][0].decode(), entries[-1][0].decode())
        return self._segment(str(name), entries)

    def _again(self, range_: _Range, after: Position) -> Segment:
        """The entries of a range of which not all rows were trained on."""
        entries: Any = self._client.xrange(self._key, range_.first, range_.last)
        if not entries:
            raise UserError(self._lost(range_, f"they are gone, and {after.row:,} rows were read"))
        return self._segment(after.segment, entries)

    def _state(self, first: str) -> tuple[Any, list[_Entry]] | None:
        """What the server says of the stream, and entries from an id on, both of one instant."""
        with self._client.pipeline(transaction=True) as pipe:
            pipe.xinfo_stream(self._key)
            pipe.xrange(self._key, first, "+", self._entries + 1)
            answers: list[Any] = pipe.execute(raise_on_error=False)
        if isinstance(answers[0], self._errors.ResponseError) and "no such key" in str(answers[0]):
            return None
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers[0], answers[1]

    def _segment(self, name: str, entries: list[_Entry]) -> Segment:
        places = [f"{self._place}, entry {number.decode()}" for number, _ in entries]
        for place, (_, fields) in zip(places, entries, strict=True):
            if FIELD not in fields:
                found = ", ".join(x.decode(errors="replace") for x in fields)
                raise UserError(
                    f"stream: {place}: expected the field {FIELD.decode()!r} with rows as JSON, or "
                    f"as a Parquet or Arrow file, got {found}; {_ADVICE}"
                )
        contents = [fields[FIELD] for _, fields in entries]
        size, sums = sum(map(len, contents)), xxhash.xxh3_128()
        for content in contents:
            sums.update(len(content).to_bytes(8, "little") + content)
        known = self._last.get(name)
        if known and (known.size, known.checksum) != (size, sums.hexdigest()):
            raise UserError(
                f"stream: {self._place}: the entries of {name} aren't those that were read: they "
                f"had {known.size:,} bytes, and have {size:,}, or others; give another --workdir"
            )
        frame = frame_of_messages(places, contents, self._schema, _ADVICE)
        self._entries = min(_ENTRIES, max(1, _BYTES * len(entries) // max(1, size)))
        note = Consumed(name, len(frame), size, sums.hexdigest())
        self._last = {name: note}
        return Segment(f"{places[0]} to {entries[-1][0].decode()}", note, frame)

    def _lost(self, range_: _Range, what: str) -> str:
        return (
            f"stream: {self._place}: the run has read entries up to {range_.last}, and {what}; "
            f"give another --workdir to start anew, and trim what a checkpoint has alone"
        )
