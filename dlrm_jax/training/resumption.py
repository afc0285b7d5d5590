"""The state that a run goes on from: its latest whole checkpoint, and the journal behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.processes import on_process_0
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.journal_files import set_entries_aside
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.replay import Replay
from dlrm_jax.training.standby import ReadAhead


class Resumed(NamedTuple):
    """What a run goes on from.

    Attributes:
        state: state after all entries of the journal.
        checkpoint_step: step of the checkpoint.
        metadata: metadata of the checkpoint, with those of the last entry in their place.
        replay: checkpoint, and its journal as far as it was applied.
    """

    state: TrainState
    checkpoint_step: int
    metadata: dict[str, Any]
    replay: Replay

    def __str__(self) -> str:
        journal = f" and its journal to step {self.state.step}" if self.replay.number else ""
        return f"step {self.checkpoint_step}{journal} in {self.replay.checkpoint.parent}"


def resume(
    checkpoints: Checkpoints,
    learner: Learner,
    id_maps: IdMaps | None,
    ahead: ReadAhead | None,
    say: Callable[[str], None],
) -> Resumed:
    """The state of the latest whole checkpoint and its journal. The workdir must be locked.

    Args:
        checkpoints: checkpoints of the run, of which there is one.
        learner: learner of the state.
        id_maps: maps that become those of the state; None without dynamic ids.
        ahead: state that a standby has read before, which ``checkpoints`` know; None for none.
        say: function that shows a line of text to the user.

    Raises:
        UserError: see `Checkpoints.restore_latest` and `Replay.read_on`.
    """
    state, step = checkpoints.restore_latest(learner, id_maps)
    checkpoints.delete_superseded()  # the run may have been killed before it did
    metadata = checkpoints.metadata(step)
    path = checkpoints.directory / f"{step:08d}"
    replay = (ahead and ahead.taken) or Replay(path)
    state = replay.read_on(learner, state, id_maps)
    if replay.damage:
        # Segments of a stream may be known to them alone: `later_segments` reads them.
        aside = on_process_0(lambda: str(set_entries_aside(path, replay.number)))
        say(
            f"warning: the journal of {path} goes to step {state.step}: {replay.damage}; what is "
            f"behind is in {aside} now, and not used any more"
        )
    notes: Mapping[str, Any] = replay.notes
    return Resumed(state, step, {**metadata, **notes}, replay)
