"""Segments that damaged checkpoints had read, later ones than that from which a run resumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dlrm_jax.errors import UserError
from dlrm_jax.files import read_json
from dlrm_jax.stream.position import Consumed, Progress
from dlrm_jax.training.rows_by_id import STREAM


def later_segments(
    directory: Path, step: int, progress: Progress, say: Callable[[str], None]
) -> tuple[Consumed, ...]:
    """Segments behind a position that checkpoints of later steps had read before they were damaged.

    They are to be read again, and may be gone: a checkpoint had their rows.

    Args:
        directory: directory of the checkpoints, with those that `Retention.set_aside` has renamed.
        step: step of the checkpoint that is resumed.
        progress: part of the stream that this one has.
        say: function that shows a line of text to the user.
    """
    after = progress.position.segment if progress.position else ""
    found: dict[str, Consumed] = {}
    for path in sorted(directory.glob("*.damaged*")):
        number = path.name.partition(".")[0]
        if not number.isdecimal() or int(number) <= step:
            continue
        try:
            noted = Progress.from_json(read_json(path / "metadata.json")[STREAM])
        except (OSError, ValueError, LookupError, TypeError, UserError) as error:
            say(
                f"warning: {path} doesn't say which segments it had read ({error!r}); see that "
                f"none behind {progress.position} has left the stream, or its rows are lost"
            )
            continue
        found |= {each.name: each for each in noted.segments}
    return tuple(each for name, each in sorted(found.items()) if name > after)
