"""The files of a journal: which entries there are, and entries that no run applies any more."""

from __future__ import annotations

from pathlib import Path

from dlrm_jax.errors import UserError
from dlrm_jax.training.retention import journal_of, path_aside


class UnreadableEntryError(UserError):
    """An entry that the file system doesn't let be read just now; it may be whole."""

    def __init__(self, path: Path, error: OSError):
        super().__init__(
            f"cannot read the journal {path}: {error}; nothing has changed: mend the disk or the "
            f"permissions, then start the run again"
        )


def entry_name(number: int) -> str:
    """The name of the file of an entry."""
    return f"{number:06}"


def entries_in(directory: Path) -> list[int]:
    """The numbers of the entries in the directory of a journal, ascending; none without one.

    Raises:
        UnreadableEntryError: the directory can't be listed.
    """
    try:
        names = [path.name for path in directory.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UnreadableEntryError(directory, error) from error
    return sorted(int(x) for x in names if x.isdecimal() and x == entry_name(int(x)))


def set_entries_aside(checkpoint: Path, last: int) -> Path | None:
    """Moves the entries behind one to a directory beside the journal, which nothing deletes.

    Args:
        checkpoint: directory of the checkpoint.
        last: number of the last entry that stays; 0 for none.

    Returns:
        That directory; None if there are no entries to move.

    Raises:
        UserError: they can't be moved.
    """
    journal = journal_of(checkpoint)
    numbers = [number for number in entries_in(journal) if number > last]
    if not numbers:
        return None
    aside = path_aside(journal)
    try:
        aside.mkdir()
        for number in reversed(numbers):  # if it is interrupted, the journal still ends there
            (journal / entry_name(number)).rename(aside / entry_name(number))
    except OSError as error:
        raise UserError(
            f"cannot move entries of {journal} to {aside}: {error}; see that its directory is "
            f"writable and that the disk isn't full, then start the run again"
        ) from error
    return aside
