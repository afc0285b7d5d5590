"""The state of a folder that `joined_folder` makes: files with their checksums, in a directory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl
import xxhash

from dlrm_jax.data.formats.parquet import reading, writing
from dlrm_jax.errors import UserError
from dlrm_jax.files import creating, move_into_place, read_json, write_json
from dlrm_jax.stream.late_labels import Held, LateLabels
from dlrm_jax.stream.position import Progress

_FORMAT = 1
_STATE, _ROWS, _EVENTS, _LEAVING = "state.json", "rows.arrow", "events.arrow", "leaving.parquet"
_FIXED = ("id", "timestamp", "label", "way")


@dataclasses.dataclass(frozen=True)
class JoinState:
    """What the next step needs.

    Attributes:
        held: rows and events that are held.
        events_until: earliest time of the last segment of events, in microseconds since 1970.
        read: parts of the folders of rows and of events that were read, by "rows" and "events".
    """

    held: Held
    events_until: int
    read: dict[str, Progress]


def save(directory: Path, settings: LateLabels, state: JoinState, leaving: pl.DataFrame) -> None:
    """Writes the state after a step, with what leaves.

    Args:
        directory: directory to make, which appears whole or not at all.
        settings: way in which rows get their labels.
        state: the state.
        leaving: rows that leave, with their label.

    Raises:
        UserError: it can't be written.
    """
    with creating(directory) as path, writing(path):
        path.mkdir()
        both = {_ROWS: state.held.rows, _EVENTS: state.held.events}
        held = {name: frame for name, frame in both.items() if frame is not None}
        for name, frame in held.items():
            frame.write_ipc(path / name)
        if len(leaving):
            leaving.write_parquet(path / _LEAVING)
        fields = {
            "format": _FORMAT,
            "settings": dataclasses.asdict(settings),
            "held": [*held],
            "checksums": {each.name: _checksum(each) for each in path.iterdir()},
            "now": state.held.now,
            "missed": state.held.missed,
            "events_until": state.events_until,
            **{name: progress.to_json() for name, progress in state.read.items()},
        }
        write_json(path / _STATE, fields)


def publish(directory: Path, segment: Path) -> None:
    """Moves what leaves out of a state to its place, unless that is done."""
    if (directory / _LEAVING).exists():
        move_into_place(directory / _LEAVING, segment)


def load(directory: Path, settings: LateLabels) -> JoinState:
    """Reads what `save` wrote; states of earlier versions have no checksums.

    Args:
        directory: directory of the state.
        settings: way in which rows get their labels now.

    Raises:
        UserError: the state can't be read or is damaged, or its rows got their labels another way.
    """
    path = directory / _STATE
    try:
        fields = read_json(path)
        if fields["format"] > _FORMAT:
            raise UserError(
                f"{path} has format {fields['format']}, this program reads {_FORMAT}: a later "
                f"version of it wrote the folder; use that version"
            )
        before, now = fields["settings"], dataclasses.asdict(settings)
        if other := [name for name in _FIXED if before[name] != now[name]]:
            raise UserError(
                f"{other[0]}: expected {before[other[0]]!r}, with which {directory.parent.parent} "
                f"was begun, got {now[other[0]]!r}; give another output"
            )
        read = {name: Progress.from_json(fields[name]) for name in ("rows", "events")}
        for name, checksum in fields.get("checksums", {}).items():
            _check(directory / name, checksum)
        with reading(f"the state {directory}"):
            held = {name: pl.read_ipc(directory / name) for name in fields["held"]}
        both = held.get(_ROWS), held.get(_EVENTS)
        last = Held(*both, fields["now"], fields.get("missed", 0))  # not in earlier versions
        return JoinState(last, fields["events_until"], read)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot read {path}: {error!r}; begin anew with another output") from error


def _check(path: Path, expected: str) -> None:
    if path.name == _LEAVING and not path.exists():  # it has left
        return
    if (found := _checksum(path)) != expected:
        raise UserError(
            f"{path} is damaged: expected the checksum {expected}, its bytes have {found}; put it "
            f"back as it was, or begin anew with another output"
        )


def _checksum(path: Path) -> str:
    return xxhash.xxh3_128_hexdigest(path.read_bytes())
