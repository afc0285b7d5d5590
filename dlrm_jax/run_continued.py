"""A run that continues that of an earlier day: what it goes on from, and whether it is better."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrm_jax.data.metadata import METADATA, Metadata
from dlrm_jax.data.unseen_ids import EarlierIds
from dlrm_jax.errors import UserError
from dlrm_jax.inference.model_checks import check_click_model
from dlrm_jax.inference.runs import find_checkpoint
from dlrm_jax.processes import on_process_0
from dlrm_jax.saved_config import trained_config
from dlrm_jax.training.continuing import continued_state
from dlrm_jax.training.kept_data import find_kept
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.rows_by_id import check_static
from dlrm_jax.training.sampling import KEPT_NEGATIVES, noted_shift
from dlrm_jax.training.stopping import factor_of


@dataclasses.dataclass(frozen=True)
class Continued:
    """What a run continues, as its checkpoints note it.

    Attributes:
        source: workdir or checkpoint, as it was given.
        checkpoint: checkpoint that was read.
        step: its step, from which the run counts on.
        cuts: number of times that its learning rate had been cut.
        before: metrics of that model on the splits of the new data, by name.
        factor: factor of its learning rate by these cuts; earlier versions noted none.
    """

    source: str
    checkpoint: str
    step: int
    cuts: int
    before: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    factor: float = 1.0

    @property
    def noted(self) -> dict[str, Any]:
        """What stopping and learning rate go on with: cuts alone, as validation is on new data."""
        return {"validation": None, "cuts": self.cuts, "factor": self.factor}

    @property
    def summary(self) -> dict[str, Any]:
        """What the summary says of it."""
        return {"continued_from": self.checkpoint, "before": dict(self.before)}


def start_from(
    source: Path, learner: Learner, seed: int, directory: Path | None
) -> tuple[TrainState, Continued]:
    """The first state of a run that continues another one.

    Args:
        source: workdir of the other run, of which the best checkpoint counts, or a checkpoint.
        learner: learner of the new run.
        seed: seed of the values of new rows.
        directory: directory of the new data; None if they have none.

    Raises:
        UserError: there is no checkpoint, the data don't continue its, see `check_data`, or a
            table can't go on, see `continued_state`.
    """
    checkpoint = Path(on_process_0(lambda: str(find_checkpoint(source))))
    metadata = on_process_0(lambda: read_metadata(checkpoint))
    check_static(checkpoint, metadata, "continue_from")
    on_process_0(lambda: check_data(directory, checkpoint, metadata))
    state = continued_state(learner, seed, checkpoint, metadata)
    cuts = (metadata.get("improvement") or {}).get("cuts", 0)
    factor = factor_of(metadata)
    return state, Continued(str(source), str(checkpoint), metadata["step"], cuts, factor=factor)


def shift_before(continued: Continued) -> float:
    """The number to add to the logits of the model that is continued, by its own training.

    That of the new run is another one where its loss or its class weights are others.
    """
    checkpoint = Path(continued.checkpoint)
    metadata = on_process_0(lambda: read_metadata(checkpoint))
    return noted_shift(trained_config(checkpoint, metadata), metadata)


def check_data(directory: Path | None, checkpoint: Path, metadata: Mapping[str, Any]) -> None:
    """Checks that ids, dense features, labels and odds of data mean what they mean to a model.

    Args:
        directory: directory of the data; None if they have none.
        checkpoint: checkpoint of the model.
        metadata: metadata of the checkpoint.

    Raises:
        UserError: they don't; the message says how to prepare them. Or it is one of two towers.
    """
    # Here, since Polars comes with them, which a run on generated examples does without.
    from dlrm_jax.data.preprocessing.options import Options as Preparation

    check_click_model(checkpoint, metadata)
    kept = find_kept(checkpoint)
    grow = kept or "the data of that run"
    how = f"prepare them with python -m dlrm_jax preprocess --grow={grow}"
    if directory is None or not (directory / METADATA).exists():
        found = f"{directory} has no {METADATA}" if directory else "the data have no vocabularies"
        raise UserError(
            f"continue_from: expected data whose vocabularies go on from those of {checkpoint}, "
            f"but {found}; {how}"
        )
    prepared = Metadata.read(directory)
    if metadata["identity"].get("data") == "":
        raise UserError(
            f"continue_from: {checkpoint} was converted without data, so it isn't known what its "
            f"ids mean; convert it again with --data={directory}, if they are the rows of its "
            f"tables"
        )
    if metadata["identity"].get("data") not in (prepared.fingerprint, *prepared.grown_from):
        raise UserError(
            f"continue_from: the ids of {directory} aren't those of {checkpoint}, and don't "
            f"continue them; {how}"
        )
    share = prepared.kept_negatives.get("train", 1.0)
    noted = metadata.get(KEPT_NEGATIVES, share)  # earlier versions noted none
    if not math.isclose(share, noted):
        raise UserError(
            f"continue_from: {directory} has {share:.4g} of the negative training examples, and "
            f"{checkpoint} was trained on {noted:.4g}: no correction fits a model of both; prepare "
            f"the data with python -m dlrm_jax preprocess --drop_negatives={1 - noted:.10g}"
        )
    if kept is None:
        return
    here, there = (
        Preparation.from_json(each.made_from["options"]).schema
        for each in (prepared, Metadata.read(kept))
    )
    for name in ("label", "label_at_least", "dense", "dense_transform"):
        now, before = (getattr(each, name) for each in (here, there))
        if now != before:
            raise UserError(
                f"continue_from: the schema of {directory} has {name} {json.dumps(now)}, and that "
                f"of {checkpoint} {json.dumps(before)}: it would mean "
                f"something else; give the same schema"
            )


def ids_before(continued: Continued, bag_lengths: Sequence[int]) -> EarlierIds:
    """What gives the ids of the model that is continued, as its own preparation makes them.

    Args:
        continued: checkpoint that the run continues.
        bag_lengths: ids per example of each column of the new data, which has the same columns.
    """
    checkpoint = Path(continued.checkpoint)
    metadata = on_process_0(lambda: read_metadata(checkpoint))
    config = trained_config(checkpoint, metadata)
    return EarlierIds(config.table_rows, config.table_bag_lengths, bag_lengths)


def noted_continuation(given: Path | None, earlier: Mapping[str, Any] | None) -> Continued | None:
    """What a run that resumes continues; None if nothing.

    Args:
        given: source that is given for this start; None for none.
        earlier: metadata of the checkpoint that it resumes from; None for a new run.

    Raises:
        UserError: it continues something else than what is given.
    """
    found = earlier.get("continue_from") if earlier else None
    noted = Continued(**found) if found else None
    if earlier is None or given is None or (noted and noted.source == str(given)):
        return noted
    start = f"continues {noted.source}" if noted else "continues none"
    raise UserError(
        f"continue_from: the run that this would resume {start}, got {given}; to resume it, leave "
        f"out --continue_from; or give another workdir"
    )


def verdict(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """A sentence on whether an update is better than none, from metrics on the same examples.

    A metric that isn't a number, as the AUC of examples of one class, says nothing.
    """
    pairs = {
        name: (before[x], after[x])
        for name, x in (("auc", "auc"), ("log loss", "log_loss"))
        if not math.isnan(before[x] + after[x])
    }
    if not pairs:
        return "no metric tells whether the update is better than none"
    better = {name: now > was if name == "auc" else now < was for name, (was, now) in pairs.items()}
    numbers = ", ".join(f"{name} {was:.5f} -> {now:.5f}" for name, (was, now) in pairs.items())
    if len({*better.values()}) == 1:
        is_better = "better" if all(better.values()) else "not better"
        return f"the update is {is_better} than none: {numbers}"
    of = {is_better: name for name, is_better in better.items()}
    return f"the update is better than none by {of[True]}, and not by {of[False]}: {numbers}"
