"""Segments that damaged checkpoints and journals had read, later ones than a run resumes from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dlrm_jax.errors import UserError
from dlrm_jax.files import read_json
from dlrm_jax.stream.position import Consumed, Progress
from dlrm_jax.training.journal_entry import DamagedEntryError, read_entry
from dlrm_jax.training.journal_files import entries_in, entry_name
from dlrm_jax.training.rows_by_id import STREAM

_NOT_NOTED = (OSError, ValueError, LookupError, TypeError, UserError, DamagedEntryError)


def later_segments(
    directory: Path, step: int, progress: Progress, say: Callable[[str], None]
) -> tuple[Consumed, ...]:
    """Segments behind a position that states of later steps had read before they were damaged.

    They are to be read again, and may be gone: a checkpoint or an entry of a journal had their
    rows.

    Args:
        directory: directory of the checkpoints, with those that `Retention.set_aside` has renamed,
            and entries that `set_entries_aside` has moved.
        step: step of the state that is resumed.
        progress: part of the stream that this one has.
        say: function that shows a line of text to the user.
    """
    after = progress.position.segment if progress.position else ""
    found: dict[str, Consumed] = {}
    for path in sorted(directory.glob("*.damaged*")):
        number, _, kind = path.name.partition(".")
        if not number.isdecimal():
            continue
        if kind.startswith("journal."):
            noted, error = _of_entries(path, step)
        elif int(number) > step:
            noted, error = _of_checkpoint(path)
        else:
            continue
        if error:
            say(
                f"warning: {path} doesn't say which segments it had read ({error!r}); see that "
                f"none behind {progress.position} has left the stream, or its rows are lost; then "
                f"delete {path.name}"
            )
        found |= {each.name: each for each in noted}
    return tuple(each for name, each in sorted(found.items()) if name > after)


def _of_checkpoint(path: Path) -> tuple[tuple[Consumed, ...], Exception | None]:
    """The segments that a checkpoint notes, or why they aren't known."""
    try:
        return Progress.from_json(read_json(path / "metadata.json")[STREAM]).segments, None
    except _NOT_NOTED as error:
        return (), error


def _of_entries(path: Path, step: int) -> tuple[list[Consumed], Exception | None]:
    """The segments of all entries of later steps, and why those of the last one aren't known."""
    found: list[Consumed] = []
    problem = None
    for number in entries_in(path):
        try:
            entry, _ = read_entry(path / entry_name(number))
            if entry.step > step:
                found += Progress.from_json(entry.notes[STREAM]).segments
            problem = None
        except _NOT_NOTED as error:
            problem = error
    return found, problem
