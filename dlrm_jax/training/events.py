"""TensorBoard's event files of metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Protobuf makes the classes of messages when it is imported.
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore


class EventFile:
    """A new event file; each entry is on disk at once.

    Args:
        directory: directory of a run's event files, made if it isn't there.
        first_step: first step of this file; TensorBoard drops it and later steps of earlier files.
    """

    def __init__(self, directory: Path, first_step: int):
        directory.mkdir(exist_ok=True)
        # Not SummaryWriter, whose thread may not have written yet when the process is killed.
        # TensorBoard reads files in the order of their names, which have seconds only.
        self._writer = EventsWriter(str(directory / "events"), f".{time.time_ns()}")
        self._write(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def __call__(self, entry: Mapping[str, Any]) -> None:
        """Writes the metrics of a line of ``metrics.jsonl`` as ``SPLIT/METRIC``, without nulls."""
        values = [
            Summary.Value(tag=f"{entry['split']}/{name}", simple_value=value)
            for name, value in entry.items()
            if name not in ("step", "split") and value is not None
        ]
        self._write(step=entry["step"], summary=Summary(value=values))

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()

    def _write(self, **fields: Any) -> None:
        self._writer.write_event(Event(wall_time=time.time(), **fields))
        self._writer.flush()
