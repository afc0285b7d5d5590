r"""Gives rows the labels that come later: joins two folders of segments into one to train on.

    python -m dlrm_jax join --rows=impressions --events=clicks --output=segments --id=request \
      --timestamp=time --label=clicked --seconds=600

The rows have no label yet. An event names a row by its id: with one within --seconds, the row has
label 1. Rows wait that long, or with --way=correct leave at once with label 0, and again with
label 1 when their event comes. All three are folders as `train --stream` reads them, and
`train --stream=segments` trains on what leaves, also while it comes.

It waits for new segments for ever, or for --idle_seconds. Killed and started again, it goes on
where it was.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import get_args, get_type_hints

from absl import flags

from dlrm_jax.cli.flags import FLAGS, mark_required, require
from dlrm_jax.console import status
from dlrm_jax.stream.joined_folder import joined_folder
from dlrm_jax.stream.late_labels import LateLabels

flags.DEFINE_string(
    "rows", None, "Folder of segments of rows without a label; such as impressions."
)
flags.DEFINE_string("events", None, "Folder of segments of events: ids and times; such as clicks.")
flags.DEFINE_string(
    "output", None, "Folder to make, or to go on with, of the rows with labels; such as segments."
)
flags.DEFINE_string("id", None, "Column that names a row, in rows and events; such as request.")
flags.DEFINE_string("timestamp", None, "Column of times, in rows and events; such as time.")
flags.DEFINE_string("label", None, "Column that the rows get; such as clicked.")
flags.DEFINE_float(
    "seconds",
    None,
    "Seconds after its row for which an event counts, by their times; such as 600.",
    1e-6,
)
flags.DEFINE_enum(
    "way",
    "wait",
    [*get_args(get_type_hints(LateLabels)["way"])],
    "Whether rows wait for their label, or leave at once and are corrected.",
)
flags.DEFINE_integer(
    "most_rows", 10_000_000, "Most rows, and events, in memory; such as 1000000.", 1
)
flags.DEFINE_float(
    "idle_seconds", 0.0, "Seconds without a new segment that end it; 0 for never; such as 60.", 0
)
_REQUIRED = ("rows", "events", "output", "id", "timestamp", "label", "seconds")
mark_required(*_REQUIRED)

_PAUSE = 0.2  # seconds between two looks for a new segment


def main() -> None:
    """Joins to the end, and prints a line for each segment that leaves."""
    require(*_REQUIRED)
    settings = LateLabels(
        FLAGS.id, FLAGS.timestamp, FLAGS.label, FLAGS.seconds, FLAGS.most_rows, FLAGS.way
    )
    rows = positive = 0
    with joined_folder(
        settings, Path(FLAGS.rows), Path(FLAGS.events), Path(FLAGS.output)
    ) as folder:
        last = time.monotonic()
        while not 0 < FLAGS.idle_seconds <= time.monotonic() - last:
            step = folder.step()
            if step is None:
                time.sleep(_PAUSE)
                continue
            last = time.monotonic()
            rows, positive = rows + step.rows, positive + step.positive
            if step.segment:
                status(f"{step.segment}: {step.rows:,} rows, {step.positive:,} with label 1")
        held, missed = folder.held, folder.missed
    status(
        f"{rows:,} rows, {positive:,} with label 1, in {FLAGS.output}; {held:,} are held for what "
        f"comes later"
    )
    if missed:
        status(
            f"warning: since {FLAGS.output} was begun, {missed:,} events found no row: they came "
            f"after it had left, or are later than it by more than --seconds, or have another id. "
            f"See that the ids are those of rows; make segments shorter or --seconds longer"
        )
