"""A folder of segments: Parquet files or Arrow IPC files, complete when they have their names."""

from __future__ import annotations

import collections
import dataclasses
import stat
import time
from collections.abc import Iterable
from pathlib import Path

import xxhash

from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.errors import UserError
from dlrm_jax.stream.position import Consumed, Position
from dlrm_jax.stream.segment_frame import frame_of_file
from dlrm_jax.stream.source import Segment

_LISTED_EVERY = 1.0
"""Seconds for which a listing holds while it has segments that weren't read."""

_ADVICE = "write segments under another name (such as .NAME) and rename them when they are complete"


@dataclasses.dataclass(frozen=True)
class _File:
    size: int
    changed: int  # nanoseconds since 1970


def check_folder(directory: Path, workdir: Path, publish: Path | None = None) -> None:
    """Checks that a folder is there, and that a run on it writes nothing among its segments.

    Args:
        directory: the folder.
        workdir: directory of the run, which needn't exist.
        publish: directory of its publications, which needn't exist; None for none.

    Raises:
        UserError: there is no such directory, one of the others is it or inside it, or it is inside
            that of the publications.
    """
    if not directory.is_dir():
        raise UserError(
            f"stream: expected a directory of segments, there is no {directory}; make it, or "
            f"name another one"
        )
    folder = directory.resolve()
    for name, written in {"workdir": workdir, "publish": publish}.items():
        if written and written.resolve().is_relative_to(folder):
            raise UserError(
                f"{name}: expected a directory outside of the stream's folder {directory}, where "
                f"all is read as segments, got {written}; give another one"
            )
    if publish and folder.is_relative_to(publish.resolve()):
        raise UserError(
            f"publish: expected a directory apart from the stream's folder {directory}, got "
            f"{publish}, which has it; what is old there is deleted, so give another one"
        )


class Folder:
    """The files of a folder, in the order of their names.

    A file is complete when it is renamed: names that begin with ``.`` or end with ``.tmp`` are
    ignored. Names ascend: a new one sorts behind all that were read. A file that was read mustn't
    change; it may be deleted.

    Args:
        directory: the folder.
        schema: meaning of the columns; the others aren't read. None reads all, of any types.
        consumed: segments that were read before, as checkpoints note them. Those behind the
            position are read again, so they must be there.
    """

    def __init__(self, directory: Path, schema: Schema | None, consumed: Iterable[Consumed] = ()):
        self._directory, self._schema = directory, schema
        self._consumed = {each.name: each for each in consumed}
        self._given = ""  # name of the last segment that was given
        self._noted: tuple[Consumed, ...] = ()  # see `consumed`; sorted only where they may change
        self._waiting: collections.deque[str] = collections.deque()
        self._listed = -float("inf")

    @property
    def consumed(self) -> tuple[Consumed, ...]:
        """The segments that were read, but for those that have left the folder since."""
        return self._noted

    def next(self, after: Position | None) -> Segment | None:
        """The segment of the first row behind a position, see `Source`."""
        now = time.monotonic()
        if not self._waiting or now - self._listed >= _LISTED_EVERY:
            self._list(after)
            self._listed = now
        if after and not after.ended:
            segment = self._read(after.segment)
        elif self._waiting:
            segment = self._read(self._waiting.popleft())
        else:
            return None
        is_next = bool(self._given) and segment.note.name not in self._consumed
        self._given = segment.note.name
        self._consumed[self._given] = segment.note
        self._noted = (*self._noted, segment.note) if is_next else self._up_to_given()
        return segment

    def _up_to_given(self) -> tuple[Consumed, ...]:
        return tuple(self._consumed[x] for x in sorted(self._consumed) if x <= self._given)

    def _list(self, after: Position | None) -> None:
        """Lists the names behind a position, and checks those before it."""
        there = self._files()
        if after and not after.ended and after.segment not in there:
            raise UserError(
                f"stream: {self._directory / after.segment} is gone, and the run has read "
                f"{after.row:,} of its rows; put it back, or give another workdir to start anew"
            )
        if after and (lost := [x for x in self._consumed.keys() - there if x > after.segment]):
            raise UserError(
                f"stream: segments are gone from {self._directory}, {len(lost)} from {min(lost)} "
                f"to {max(lost)}: the run goes on behind {after}, and a later checkpoint or "
                f"journal, which is damaged, had their rows; put them back, or delete the "
                f"checkpoints and journals named .damaged to go on without these rows"
            )
        for name, file in there.items():
            self._check(name, file, after)
        # What is gone needs no check any more, so that notes don't grow for ever.
        kept = after.segment if after else None
        self._consumed = {x: y for x, y in self._consumed.items() if x in there or x == kept}
        last = after.segment if after else ""
        self._noted = self._up_to_given()
        self._waiting = collections.deque(sorted(name for name in there if name > last))

    def _check(self, name: str, file: _File, after: Position | None) -> None:
        path, known = self._directory / name, self._consumed.get(name)
        if known is None:
            if after and name < after.segment:
                raise UserError(
                    f"stream: {path} sorts before {after.segment}, which was read already, so its "
                    f"rows would never be trained on; rename it so that it sorts behind; or if its "
                    f"rows were trained on before, move it out of the folder"
                )
        elif file != _File(known.size, known.changed):
            # Another time alone is that of a copy.
            if file.size == known.size:
                checksum = _checksum(self._bytes(path))
                if checksum == known.checksum:
                    self._consumed[name] = dataclasses.replace(known, changed=file.changed)
                    return
            raise UserError(
                f"stream: {path} has changed after it was read: it had {known.size:,} bytes with "
                f"the checksum {known.checksum}, and has {file.size:,} other bytes now; put it "
                f"back as it was, and {_ADVICE}"
            )

    def _files(self) -> dict[str, _File]:
        try:
            paths = list(self._directory.iterdir())
        except OSError as error:
            raise UserError(f"stream: cannot list {self._directory}: {error}") from error
        found: dict[str, _File] = {}
        for path in paths:
            if path.name.startswith(".") or path.name.endswith(".tmp"):
                continue
            try:
                status = path.stat()
            except FileNotFoundError:  # deleted meanwhile, or a link to nothing
                continue
            except OSError as error:
                raise UserError(
                    f"stream: cannot read {path}: {error}; move it out of the way"
                ) from error
            if not stat.S_ISREG(status.st_mode):  # opening a pipe may wait for ever
                kind = "directory" if stat.S_ISDIR(status.st_mode) else "pipe, device or socket"
                raise UserError(
                    f"stream: expected files alone in {self._directory}, got the {kind} "
                    f"{path.name}; move it out of the way"
                )
            found[path.name] = _File(status.st_size, status.st_mtime_ns)
        return found

    def _bytes(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"stream: cannot read {path}: {error}") from error

    def _read(self, name: str) -> Segment:
        path = self._directory / name
        try:
            changed = path.stat().st_mtime_ns  # before the bytes: a later change has another one
        except OSError as error:
            raise UserError(f"stream: cannot read {path}: {error}") from error
        content = self._bytes(path)
        checksum, known = _checksum(content), self._consumed.get(name)
        if known and (known.size, known.checksum) != (len(content), checksum):
            raise UserError(
                f"stream: {path} has changed after rows of it were read: its checksum was "
                f"{known.checksum}, and is {checksum}; put it back as it was, and {_ADVICE}"
            )
        advice = f"move it out of the folder, or {_ADVICE}"
        frame = frame_of_file(str(path), content, self._schema, advice)
        note = Consumed(name, len(frame), len(content), checksum, changed)
        return Segment(str(path), note, frame)


def _checksum(content: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(content)
