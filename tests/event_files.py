"""What TensorBoard reads from the event files of a run, by the format alone."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by tag; a START forgets those from its step on, as TensorBoard does."""
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(directory.glob("*.tfevents.*")):
        for event in events(path):
            if event.session_log.status == SessionLog.START:
                found = {
                    tag: [(step, value) for step, value in points if step < event.step]
                    for tag, points in found.items()
                }
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return {tag: points for tag, points in found.items() if points}


def events(path: Path) -> Iterator[Event]:
    """The records of a file: length, its checksum, an event, its checksum."""
    data = path.read_bytes()
    while data:
        size = struct.unpack("<Q", data[:8])[0]
        body = data[12 : 12 + size]
        assert data[8:12] == _checksum(data[:8])
        assert data[12 + size : 16 + size] == _checksum(body)
        yield Event.FromString(body)
        data = data[16 + size :]


def _checksum(data: bytes) -> bytes:
    """CRC-32C, rotated and shifted as TensorFlow's record format has it."""
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)
