"""The state, position and journal that a run on a stream goes on from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dlrm_jax.config import Config
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.processes import on_process_0
from dlrm_jax.stream.noted_schema import with_schema
from dlrm_jax.stream.position import Consumed, Progress
from dlrm_jax.stream.prequential import SPLIT, Prequential
from dlrm_jax.stream.set_aside import later_segments
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.host_arrays import load_host_arrays
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.record import read_record
from dlrm_jax.training.replay import Replay
from dlrm_jax.training.resumption import resume
from dlrm_jax.training.rows_by_id import STREAM
from dlrm_jax.training.standby import ReadAhead


@dataclasses.dataclass(frozen=True)
class Start:
    """What a run begins with.

    Attributes:
        state: state.
        progress: part of the stream that it was trained on.
        before: metadata of its checkpoint and journal; empty for a new run.
        replay: checkpoint, and its journal as far as it was applied; None for a new run.
    """

    state: TrainState
    progress: Progress
    before: Mapping[str, Any]
    replay: Replay | None


def start(
    config: Config,
    learner: Learner,
    checkpoints: Checkpoints,
    prequential: Prequential,
    say: Callable[[str], None],
    maps: IdMaps | None,
    ahead: ReadAhead | None,
) -> Start:
    """Reads the latest state, or makes the first one. All processes call it together.

    Args:
        config: config of the run.
        learner: learner of the config.
        checkpoints: checkpoints of the run.
        prequential: windows of the evaluation, which get the examples of the open one.
        say: function that shows a line of text to the user.
        maps: maps that become those of the state; None without dynamic ids.
        ahead: states that a standby has read before; None without one.

    Raises:
        UserError: see `Checkpoints`, `Replay` and `Progress`.
    """
    if not checkpoints.steps():
        return Start(learner.init(config.seed), Progress(), {}, None)
    found = resume(checkpoints, learner, maps, ahead, say)
    state, _, metadata, replay = found
    progress = Progress.from_json(metadata.get(STREAM) or {})
    prequential.restore(
        replay.host_arrays if replay.number else load_host_arrays(replay.checkpoint, metadata)
    )
    say(f"resuming from {found}, behind {progress.position}")
    return Start(state, progress, metadata, replay)


def read_later(
    checkpoints: Checkpoints, begun: Start, say: Callable[[str], None]
) -> tuple[Consumed, ...]:
    """The segments of `later_segments`, as process 0 finds them; none for a new run.

    Args:
        checkpoints: checkpoints of the run.
        begun: state that it goes on from, and what belongs to it.
        say: function that shows a line of text to the user.
    """
    if not begun.before:
        return ()

    def found() -> list[dict[str, Any]]:
        step = int(begun.state.step)
        later = later_segments(checkpoints.directory, step, begun.progress, say)
        return [dataclasses.asdict(each) for each in later]

    return tuple(Consumed(**each) for each in on_process_0(found))


def noting_schema(replay: Replay, schema: Schema) -> Replay:
    """`with_schema`, which process 0 does for all."""
    noted: list[Replay] = []

    def note() -> bool:
        noted.append(with_schema(replay, schema))
        return noted[0] is not replay

    changed = on_process_0(note)
    if noted:
        return noted[0]
    return Replay(replay.checkpoint) if changed else replay


def last_window(workdir: Path) -> dict[str, Any] | None:
    """The metrics of the last window that was recorded before the run resumed."""

    def read() -> dict[str, Any] | None:
        lines = [x for x in read_record(workdir / "metrics.jsonl") if x["split"] == SPLIT]
        if not lines:
            return None
        found = {x: y for x, y in lines[-1].items() if x not in ("step", "split")}
        return {name: math.nan if value is None else value for name, value in found.items()}

    return on_process_0(read)
