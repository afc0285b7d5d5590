"""A Redis stream: each entry is a message, and a segment is some that were read at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from dlrm_jax.console import status
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.stream.messages import Message, check_same, segment_of
from dlrm_jax.stream.position import Consumed, Position
from dlrm_jax.stream.source import Segment, UnreachableError

FIELD = b"value"
"""The field of an entry that has its rows."""

_ENTRIES = 10_000  # of a segment, at most
_BYTES = 1 << 26  # of a segment, about
_SECONDS = 5.0  # for an answer of the server
_ADVICE = "delete the entry with XDEL"
_AWAY = ("MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "LOADING")  # of servers that are back soon

_Entry = tuple[bytes, dict[bytes, bytes]]


@dataclasses.dataclass(frozen=True)
class _Place:
    """An entry.

    Attributes:
        id: its id, ``milliseconds-number``.
        number: number of entries that the stream has lost when it is trimmed up to this one; less
            than that by those that were deleted one by one before they were read.
    """

    id: str
    number: int

    def __str__(self) -> str:
        milliseconds, number = map(int, self.id.split("-"))
        return f"{milliseconds:020d}-{number:020d}:{self.number}"

    @classmethod
    def of(cls, name: str) -> _Place:
        """The entry that is a segment's last one, by the segment's name.

        Raises:
            UserError: it is the name of a segment of another source.
        """
        try:
            both, number = name.split(":")
            first, second = map(int, both.split("-"))
            return cls(f"{first}-{second}", int(number))
        except ValueError as error:
            raise UserError(
                f"stream: expected a run on a Redis stream, got a position in segment {name!r} of "
                f"another source; give another --workdir"
            ) from error


class RedisStream:
    """The entries of a Redis stream, in the order of their ids.

    The rows of an entry are the field `FIELD`, see `messages`. An entry may be trimmed when a
    checkpoint has its last row; entries that were trimmed before they were read are an error, and
    so is a stream that was made anew. It needs Redis 7.

    Args:
        url: ``redis://HOST:PORT/KEY?db=1``, or ``rediss://`` with the settings ``ssl_…`` of
            ``redis.Redis``; a password stands before the host, as in ``:PASSWORD@HOST``.
        schema: meaning of the columns.
        consumed: messages that were read before, as a checkpoint notes them.

    Raises:
        UserError: the URL isn't of this form, or the package ``redis`` isn't there.
    """

    def __init__(self, url: str, schema: Schema, consumed: Iterable[Consumed] = ()):
        try:
            import redis
            import redis.exceptions
        except ImportError as error:
            raise UserError(
                f"stream: {error}; streams of Redis need pip install -e '.[redis]'"
            ) from error
        self._errors = redis.exceptions
        try:
            parts = urlsplit(url)
            port = parts.port or 6379
            names = [pair.partition("=")[0] for pair in parts.query.split("&") if pair]
            if any(name != "db" and not name.startswith("ssl_") for name in names):
                raise ValueError(f"expected the settings db and ssl_…, got {', '.join(names)}")
            if parts.scheme != "rediss" and any(name.startswith("ssl_") for name in names):
                raise ValueError("the settings ssl_… are those of rediss://")
            self._client = redis.Redis.from_url(
                parts._replace(path="").geturl(),
                socket_timeout=_SECONDS,
                socket_connect_timeout=_SECONDS,
            )
            self._client.connection_pool.make_connection()  # takes the settings; opens nothing
        except (ValueError, TypeError, redis.exceptions.RedisError) as error:
            raise UserError(
                f"stream: expected redis://HOST:PORT/KEY: {error}; mend the URL"
            ) from error
        self._key = unquote(parts.path.removeprefix("/"))
        if not self._key or not parts.hostname:
            raise UserError(
                "stream: expected redis://HOST:PORT/KEY, got a URL without a host or a key; name "
                "the stream, such as redis://localhost:6379/clicks, and write / in a password as "
                "%2F"
            )
        self._place = f"{parts.scheme}://{parts.hostname}:{port}/{self._key}"
        self._has_password = parts.password is not None
        self._schema, self._known = schema, tuple(consumed)
        self._entries = 16

    @property
    def consumed(self) -> tuple[Consumed, ...]:
        """None: a position has the note of its message."""
        return ()

    def next(self, after: Position | None) -> Segment | None:
        """The entries behind a position, see `Source`."""
        errors = self._errors
        place = _Place.of(after.segment) if after else None
        try:
            return self._following(place, after)
        except (errors.AuthenticationError, errors.AuthorizationError) as error:
            # Without a password, the answer is a line on the protocol.
            said = str(error) if self._has_password else "the server asks for a password"
            raise UserError(
                f"stream: {self._place}: {said}; write :PASSWORD@ or USER:PASSWORD@ before the "
                f"host of the URL, or mend it there"
            ) from error
        except (errors.ConnectionError, errors.TimeoutError) as error:
            raise UnreachableError(f"stream: {self._place} can't be reached: {error}") from error
        except errors.RedisError as error:
            if str(error).startswith(_AWAY):
                raise UnreachableError(f"stream: {self._place}: {error}") from error
            raise UserError(f"stream: {self._place}: {error}") from error

    def _following(self, place: _Place | None, after: Position | None) -> Segment | None:
        """The entries behind a position; its own alone, if that isn't read to its end."""
        state = self._state(place.id if place else "-")
        if state is None:
            if place:
                raise self._other(place, "there is no such stream any more")
            return None
        info, entries = state
        if "entries-added" not in info:
            raise UserError(f"stream: {self._place}: expected Redis 7 or later; update the server")
        added, gone = info["entries-added"], info["entries-added"] - info["length"]
        read_all = len(entries) <= self._entries
        number = place.number if place else gone
        if place and after:
            if entries and entries[0][0].decode() == place.id:
                check_same(self._message(entries[0]), after, self._known)
                if not after.ended:
                    return self._segment(entries[:1], lambda _: place)
                entries = entries[1:]
            else:
                self._check_gap(place, after, info)
        entries = entries[: self._entries]
        if not entries:
            return None

        def at(i: int) -> _Place:
            last = read_all and i == len(entries) - 1
            return _Place(entries[i][0].decode(), added if last else number + i + 1)

        return self._segment(entries, at)

    def _check_gap(self, place: _Place, after: Position, info: Any) -> None:
        """Checks what is missing where the entry of a position isn't there any more."""
        gone = info["entries-added"] - info["length"]
        deleted = _key(info["max-deleted-entry-id"].decode())
        first = info["first-entry"]
        is_trimmed = not first or _key(first[0].decode()) > _key(place.id)
        if not after.ended:
            raise self._other(place, f"it is gone, and {after.row:,} of its rows were read")
        if not is_trimmed and deleted < _key(place.id):
            raise self._other(place, "it isn't there, though entries before it are")
        if is_trimmed and gone < place.number:
            raise self._other(place, f"the stream has lost {gone:,} entries alone")
        if is_trimmed and gone > place.number:
            lost = f"{gone - place.number:,} later entries"
            if deleted <= _key(place.id):
                raise self._other(place, f"{lost} were trimmed unread")
            status(
                f"warning: stream: {self._place}: {lost} than {place.id} are gone; if not all of "
                f"them were deleted with XDEL, they were trimmed unread"
            )

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

    def _segment(self, entries: Sequence[_Entry], at: Any) -> Segment:
        messages = [self._message(entry) for entry in entries]
        segment = segment_of(messages, self._schema, lambda i: str(at(i)), _ADVICE)
        size = sum(len(message.content) for message in messages)
        self._entries = min(_ENTRIES, max(1, _BYTES * len(messages) // max(1, size)))
        self._known = (segment.note,)
        return segment

    def _message(self, entry: _Entry) -> Message:
        number, fields = entry
        place = f"{self._place}, entry {number.decode()}"
        if FIELD not in fields:
            found = ", ".join(x.decode(errors="replace") for x in fields)
            raise UserError(
                f"stream: {place}: expected the field {FIELD.decode()!r} with rows as JSON, or as "
                f"a Parquet or Arrow file, got {found}; {_ADVICE}"
            )
        return Message(place, fields[FIELD])

    def _other(self, place: _Place, what: str) -> UserError:
        return UserError(
            f"stream: {self._place}: the run has read entries up to {place.id}, and {what}; give "
            f"another --workdir to start anew, and trim only what the oldest checkpoint has"
        )


def _key(number: str) -> tuple[int, ...]:
    return tuple(map(int, number.split("-")))
