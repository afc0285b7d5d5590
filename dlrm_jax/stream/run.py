"""A run on a stream: start or resume, train to its end, and the files that it leaves."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dlrm_jax.backend import describe_devices
from dlrm_jax.config import Config
from dlrm_jax.data.batches import Batch, own_examples
from dlrm_jax.data.preprocessing.hashed_rows import HashedRows
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.embedding.kernel_dispatch import check_processes
from dlrm_jax.host_exchange import connected
from dlrm_jax.inference.noted_ids import SCHEMA, fields_of
from dlrm_jax.processes import on_process_0
from dlrm_jax.run_start import describe_run
from dlrm_jax.saved_config import file_text
from dlrm_jax.stream.batches import Encoder, StreamBatch, stream_batches
from dlrm_jax.stream.dynamic_rows import DynamicRows, warn_of_few_rows
from dlrm_jax.stream.loop import Intervals, StreamLoop, place
from dlrm_jax.stream.position import Consumed, Progress
from dlrm_jax.stream.prequential import Prequential
from dlrm_jax.stream.settings import (
    OF_SCHEMA,
    WITHOUT_EFFECT,
    IdClock,
    check_id_clock,
    fingerprint,
)
from dlrm_jax.stream.source import Source, Stoppable, UnreachableError
from dlrm_jax.stream.start import last_window, noting_schema, read_later, start
from dlrm_jax.stream.step import make_prequential_step
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.dynamic_tables import id_maps_of
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.live_maps import LiveMaps
from dlrm_jax.training.model import unread
from dlrm_jax.training.publication import Publication
from dlrm_jax.training.record import Record, owned, to_json, write_result
from dlrm_jax.training.replay import Replay
from dlrm_jax.training.rows_by_id import STREAM
from dlrm_jax.training.run_journal import RunJournal
from dlrm_jax.training.standby import stand_by


@dataclasses.dataclass(frozen=True)
class StreamOptions:
    """How a stream is read, and the files of the run.

    Attributes:
        workdir: directory of metrics, summary and checkpoints, from which a run resumes.
        idle_seconds: seconds without a new segment that end the run; 0 for never.
        checkpoint_seconds: seconds between checkpoints, besides those by steps; 0 for none.
        window: examples of a window of the prequential evaluation.
        tensorboard: whether the metrics are written to ``workdir/tensorboard`` as well.
        preset: name for the summary.
        standby: whether to wait until no other run has the workdir, see `training.standby`.
        journal_seconds: seconds between two entries of the journal, see `training.journal`; 0 for
            none. A journal that is there is read in any case.
        publication: context of the publisher of the states of the training, or of None; it is
            entered when the workdir is locked. None for none.
        id_clock: unit of the clock of dynamic ids. Seconds are those of the schema's timestamp: the
            latest time of a row so far, never backwards.
    """

    workdir: Path
    idle_seconds: float = 0.0
    checkpoint_seconds: float = 60.0
    window: int = 1 << 17
    tensorboard: bool = False
    preset: str | None = None
    standby: bool = False
    journal_seconds: float = 0.0
    publication: AbstractContextManager[Publication | None] | None = None
    id_clock: IdClock = "steps"


def run_stream(
    config: Config,
    schema: Schema,
    open_source: Callable[[tuple[Consumed, ...]], Source],
    learner: Learner,
    options: StreamOptions,
    say: Callable[[str], None] = lambda text: None,
    encoder: Encoder | None = None,
) -> dict[str, Any]:
    """Trains on a stream from where the workdir's latest checkpoint left off.

    Args:
        config: config of the run, see `settings.for_schema`; its ``steps`` end the run, if not 0.
        schema: meaning of the columns.
        open_source: function that opens the stream, given the segments that were read before, also
            those behind the position that checkpoints had read which are damaged by now.
        learner: learner of the config.
        options: see the class.
        say: function that shows a line of text to the user.
        encoder: function that gives raw ids rows of tables; None for `HashedRows`, or for
            `DynamicRows` where tables have dynamic ids.

    Returns:
        What ``summary.json`` says.

    Raises:
        UserError: the stream can't be read, or is another one than that of the checkpoint; see also
            `train` and `Checkpoints`.
        Interrupted: a signal came; the state was saved.
    """
    own = own_examples(config.batch_size, jax.process_index(), jax.process_count())
    check_processes(learner.mesh, learner.kernels_in_use)
    check_id_clock(options.id_clock, config, schema)
    prequential = Prequential(config, schema, options.window)
    workdir = options.workdir
    with contextlib.ExitStack() as opened:
        clock = "steps" if options.id_clock == "steps" else f"seconds of {schema.timestamp}"
        of_stream = {"id_clock": clock}
        identity = {"data": fingerprint(schema), **config.identity(), STREAM: of_stream}
        checkpoints = Checkpoints(
            workdir / "checkpoints", identity, config.keep_checkpoints, say=say,
            groups={STREAM: lambda saved: {"id_clock": "steps"} | dict(saved)},  # earlier versions
        )  # fmt: skip
        step, ahead = make_prequential_step(learner), None
        if options.standby:
            with contextlib.suppress(UnreachableError):  # it may answer by then
                open_source(()).next(None)  # what it imports, and what is wrong with the stream
            placed = place(learner, _blank_batch(config, learner))
            ahead = stand_by(
                opened, workdir, checkpoints, learner, config.seed,
                lambda state: step(state, *placed), say,
            )  # fmt: skip
            checkpoints = dataclasses.replace(checkpoints, ahead=ahead.take)
        else:
            opened.enter_context(owned(workdir))
        publication: Publication | None = None
        if options.publication:
            publication = opened.enter_context(options.publication)
        checkpoints.prepare()
        maps = id_maps_of(learner.collection, config.seed)
        if maps:
            warn_of_few_rows(maps, config.batch_size, say)
        begun = start(config, learner, checkpoints, prequential, say, maps, ahead)
        state, progress, before, replay = begun.state, begun.progress, begun.before, begun.replay
        live = LiveMaps(learner, maps, config.seed, int(state.step)) if maps else None
        resumed_from = int(state.step) if before else None
        source = open_source(progress.segments + read_later(checkpoints, begun, say))
        on_process_0(lambda: write_result(workdir / "config.json", _config_text(config)))
        events = workdir / "tensorboard" if options.tensorboard else None
        file = opened.enter_context(Record(workdir / "metrics.jsonl", resumed_from or 0, events))
        notes = describe_run(config, learner)

        if replay and encoder is None:
            replay = noting_schema(replay, schema)
        journal = None
        if options.journal_seconds:
            seconds = options.journal_seconds
            journal = RunJournal(learner, seconds, live, file.flush, prequential.arrays)
            if replay:
                journal.begin(replay, int(state.step))

        def keep(state: TrainState, progress: Progress, speed: float | None) -> bool:
            file.flush()
            of_stream = progress.to_json()
            if encoder is None:  # others' rows can't be given to raw values again
                of_stream[SCHEMA] = fields_of(schema)
            known = {**notes, "examples_per_second": speed, STREAM: of_stream}
            of_step = live.maps_at(int(state.step)) if live else None
            checkpoints.save(learner, state, known, None, of_step, prequential.arrays())
            if journal:
                saved = int(state.step)
                journal.begin(Replay(checkpoints.directory / f"{saved:08d}"), saved)
            return True

        loop = StreamLoop(
            learner,
            step,
            prequential,
            Intervals(
                config.log_every,
                config.checkpoint_every,
                options.checkpoint_seconds,
                config.check_copies_every,
                options.idle_seconds,
            ),
            file,
            keep,
            connected(),
            live,
            journal,
            publication,
            source.stop if isinstance(source, Stoppable) else lambda: None,
        )
        by_ids = hashed = HashedRows(schema, config.table_rows)
        tell_time = _tell_nobody
        if maps and live:
            by_ids = DynamicRows(hashed, maps, live)
            if options.id_clock == "seconds":
                tell_time = by_ids.tell_time
        batches = stream_batches(
            source,
            schema,
            encoder or by_ids,
            config.batch_size,
            progress,
            own,
            tell_time=tell_time,
            say=say,
        )
        loop.last_window = last_window(workdir)
        if publication:
            publication.begin(state, live)
            batches = _told(batches, publication, int(state.step))
        state, progress, speed = loop(
            state, progress, batches, config.steps, before["step"] if before else int(state.step)
        )
        if publication:
            publication.end(state)
        summary = {
            "mesh": notes["mesh"],
            "devices": describe_devices(learner.mesh),
            "preset": options.preset,
            "batch_size": config.batch_size,
            "steps": int(state.step),
            "examples_per_second": speed,
            "resumed_from": resumed_from,
            "best_step": None,
            "teacher_auc": None,
            "prequential": loop.last_window,
            "examples": progress.examples,
            "position": progress.position and dataclasses.asdict(progress.position),
        }
        on_process_0(lambda: write_result(workdir / "summary.json", to_json(summary, indent=1)))
        return summary


def _tell_nobody(seconds: int) -> None:
    """Ids lose their rows by steps."""


def _told(
    batches: Iterator[StreamBatch | float], publication: Publication, step: int
) -> Iterator[StreamBatch | float]:
    """The batches behind a step, of which a publication is told as they are read."""
    for batch in batches:
        if isinstance(batch, StreamBatch):
            step += 1
            publication.will_train(step, batch.batch.ids)
        yield batch


def _blank_batch(config: Config, learner: Learner) -> Batch:
    """A batch of the shapes of all others."""
    columns = sum(feature.max_ids for feature in learner.collection.features)
    labels = (len(learner.labels),) if len(learner.labels) > 1 else ()
    return Batch(
        np.zeros((config.batch_size, config.dense_features), np.float32),
        np.zeros((config.batch_size, columns), np.int32),
        np.zeros((config.batch_size, *labels), np.float32),
        np.ones(config.batch_size, np.float32),
    )


def _config_text(config: Config) -> str:
    decided = {*unread(config), *OF_SCHEMA, *WITHOUT_EFFECT, "shared_tables"}
    return file_text(config, decided)
