"""The start of a run: its options, checks, checkpoints, and the state to go on from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset
from dlrm_jax.data.metadata import Metadata
from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.errors import UserError
from dlrm_jax.inference.runs import find_checkpoint
from dlrm_jax.processes import on_process_0
from dlrm_jax.run_continued import Continued, start_from
from dlrm_jax.saved_config import VERSION, file_text, other_shapes
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.config_data import OF_DATA
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.loop import Metrics
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.model import unread
from dlrm_jax.training.publication import Publication
from dlrm_jax.training.record import versions
from dlrm_jax.training.replay import Replay
from dlrm_jax.training.resumption import resume
from dlrm_jax.training.rows_by_id import check_static
from dlrm_jax.training.sampling import KEPT_NEGATIVES
from dlrm_jax.training.saved_names import names_there
from dlrm_jax.training.standby import ReadAhead
from dlrm_jax.training.warm_start import warm_start


@dataclasses.dataclass(frozen=True)
class Options:
    """The start of a run, and its files. Its config describes everything else.

    Attributes:
        workdir: directory of metrics, summary and checkpoints, from which a run resumes; None for
            a run that writes no files.
        tensorboard: whether the metrics are written to ``workdir/tensorboard`` as well.
        warm_start: checkpoint or directory of arrays that a new run takes values from; a run that
            resumes must have had the same.
        warm_start_names: tables and layers to take.
        continue_from: workdir or checkpoint of a run that a new run continues on data that have
            grown from its data; a run that resumes must have had the same.
        evaluate_only: checkpoint of the workdir to evaluate, without training.
        preset: name for the summary.
        watch: function of a step and its validation metrics that makes the run a trial of a search.
            It is called at each evaluation and may raise to end the run. The other splits aren't
            read. The workdir gets no summary, no vocabularies and no best checkpoint.
        publication: context of the publisher of the states of the training, or of None; it is
            entered when the workdir is locked. None for none.
        standby: whether to wait until no other run has the workdir, see `training.standby`.
        journal_seconds: seconds between two entries of the journal, see `training.journal`; 0 for
            none. A journal that is there is read in any case.
    """

    workdir: Path | None = None
    tensorboard: bool = False
    warm_start: Path | None = None
    warm_start_names: tuple[str, ...] = ()
    continue_from: Path | None = None
    evaluate_only: Literal["latest", "best"] | None = None
    preset: str | None = None
    watch: Callable[[int, Metrics], None] | None = None
    publication: AbstractContextManager[Publication | None] | None = None
    standby: bool = False
    journal_seconds: float = 0.0


class Start(NamedTuple):
    """What a run goes on from.

    Attributes:
        state: state.
        resumed_from: step of the run's own checkpoint, or of its journal, that the state is from;
            None for a new run.
        before: metadata of that state; None for a new run.
        continued: description of what a run that begins now continues; None for any other.
        replay: checkpoint and journal of the state; None if it is of none that is trained on.
    """

    state: TrainState
    resumed_from: int | None = None
    before: Mapping[str, Any] | None = None
    continued: Continued | None = None
    replay: Replay | None = None


_WITHOUT_VALIDATION = Config()


def check_splits(
    config: Config, data: Dataset, inherited: bool = False, new: bool = True
) -> list[str]:
    """The splits without examples: validation, test, both or neither.

    Args:
        config: config of the run.
        data: data set.
        inherited: whether the config is that of a checkpoint. Its ``best_metric`` may have been
            chosen for other data, and counts no more.
        new: whether the run begins here.

    Raises:
        UserError: there are none for training, or the config needs those for validation.
    """
    absent = [name for name, split in data.splits.items() if not len(split)]
    if "train" in absent:
        raise UserError("train: expected at least one example, got none")
    if "validation" in absent:
        auc = dataclasses.replace(config, best_metric="auc")
        check_unvalidated(auc if inherited else config, new and not inherited)
    return absent


def check_unvalidated(config: Config, new: bool = True) -> None:
    """Checks that nothing in the config needs examples for validation.

    Args:
        config: config of the run.
        new: whether the run begins here. Earlier versions took ``validation_examples``.

    Raises:
        UserError: something does.
    """
    names = ("target_auc", "patience", "plateau_factor", "best_metric")
    for name in (*names, "validation_examples") if new else names:
        found, without = getattr(config, name), getattr(_WITHOUT_VALIDATION, name)
        if found != without:
            raise UserError(
                f"{name}: it needs examples for validation, and the data have none, got {found}; "
                f"leave it out, or prepare data with a validation split"
            )


def checkpoints_of(
    config: Config,
    data: Dataset,
    workdir: Path,
    say: Callable[[str], None] = lambda text: None,
) -> Checkpoints:
    """The checkpoints of a run, which only a run of the same settings and data resumes from.

    Args:
        config: config of the run.
        data: data set.
        workdir: directory of the run.
        say: function that shows a line of text to the user.
    """
    identity = {"data": data.fingerprint, **config.identity()}
    return Checkpoints(
        workdir / "checkpoints",
        identity,
        config.keep_checkpoints,
        config.best_metric,
        data.earlier_fingerprints,
        for_new_data="--continue_from trains a model further on new data",
        say=say,
    )


def describe_run(config: Config, learner: Learner, kept_negatives: float = 1.0) -> dict[str, Any]:
    """What a checkpoint notes of its run, as JSON: mesh, plan, config, versions.

    Args:
        config: config of the run.
        learner: learner of the config.
        kept_negatives: share of the training examples of label 0 that preparation has kept.
    """
    return {
        "mesh": f"{learner.axes.groups}x{learner.axes.shards}",
        "plan": json.loads(learner.collection.plan.to_json()),
        "config": dataclasses.asdict(config),
        "config_version": VERSION,
        "versions": versions(),
        "warm_start": None,
        "continue_from": None,
        KEPT_NEGATIVES: kept_negatives,
    }


_OF_GENERATED = ("examples", "zipf_exponent", "teacher")


def config_text(config: Config, data: Dataset) -> str:
    """The text of ``WORKDIR/config.json``, which ``--config`` takes to train such a model again.

    What the data decide isn't in it, nor what the config doesn't read.
    """
    decided = set(unread(config))
    if data.teacher_auc is None:  # the data aren't generated
        decided |= {*OF_DATA, *_OF_GENERATED}
    if config.min_count == 1:
        decided.add("min_count")
    of_data = {f"{name}={owner}" for name, owner in data.shared.items()}
    own = tuple(x for x in config.shared_tables if x not in of_data)
    return file_text(dataclasses.replace(config, shared_tables=own), decided)


def check_start(config: Config, options: Options) -> None:
    """Checks that a new run can take values from another one, before its workdir is made.

    Raises:
        UserError: it has dynamic ids, and takes some.
    """
    if config.dynamic_ids and (options.continue_from or options.warm_start):
        flag = "continue_from" if options.continue_from else "warm_start"
        raise UserError(
            f"{flag}: expected a run without dynamic ids, whose rows are those of the other run, "
            f"got dynamic_ids={','.join(config.dynamic_ids)}; leave one of the two out"
        )


def first_state(
    config: Config,
    learner: Learner,
    checkpoints: Checkpoints | None,
    data: Dataset,
    options: Options,
    say: Callable[[str], None],
    id_maps: IdMaps | None = None,
    ahead: ReadAhead | None = None,
) -> Start:
    """The state to go on from; the maps, if there are any, become those of the state.

    A standby gives what it has read before, see `resume`.
    """
    steps = checkpoints.steps() if checkpoints else []
    if checkpoints and steps:
        if not options.evaluate_only:
            found = resume(checkpoints, learner, id_maps, ahead, say)
            say(f"resuming from {found}")
            resumed_from = int(found.state.step)
            return Start(found.state, resumed_from, found.metadata, replay=found.replay)
        best = checkpoints.best()
        step = best if options.evaluate_only == "best" else steps[-1]
        if step is None:
            raise UserError(f"no checkpoint in {checkpoints.directory} was validated")
        which = which_checkpoint(step, steps[-1], best)
        say(f"restoring step {step} from {checkpoints.directory}: {which}")
        state = checkpoints.restore(learner, step, id_maps)
        return Start(state, step, checkpoints.metadata(step))
    if options.evaluate_only:
        raise UserError(f"--eval_only: there is no checkpoint in {options.workdir}/checkpoints")
    if options.continue_from:
        state, continued = start_from(options.continue_from, learner, config.seed, data.directory)
        say(f"continuing step {continued.step} of {continued.checkpoint}")
        return Start(state, continued=continued)
    if options.warm_start:
        return Start(_warm(config, learner, data, options, say))
    return Start(learner.init(config.seed))


def which_checkpoint(step: int, latest: int, best: int | None) -> str:
    """What an evaluated checkpoint is, and what the other one is that a user may have meant."""
    if step == best:
        return "the best checkpoint" + ", which is the latest, too" * (step == latest)
    other = "" if best is None else f"; --checkpoint=best evaluates step {best}, as predict does"
    return f"the latest checkpoint{other or ', as none was validated'}"


def _warm(
    config: Config, learner: Learner, data: Dataset, options: Options, say: Callable[[str], None]
) -> TrainState:
    """The first state of a run with a warm start."""
    assert options.warm_start
    given = options.warm_start
    source = Path(on_process_0(lambda: str(find_checkpoint(given))))
    if source != given:
        say(f"warm start from {source}")
    same_ids, settings = None, None
    if data.directory:
        same_ids = [data.fingerprint, *Metadata.read(data.directory).grown_from]
    if (source / "metadata.json").exists():
        check_static(source, read_metadata(source), "warm_start")
        settings = other_shapes(config, read_metadata(source))
    there = names_there(config, source, same_ids)
    names = options.warm_start_names
    return warm_start(learner, config.seed, source, names, same_ids, there, settings, config.labels)
