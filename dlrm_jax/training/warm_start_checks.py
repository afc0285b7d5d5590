"""What a new state may start from: checks of a warm start, and its note in checkpoints."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrm_jax.errors import UserError
from dlrm_jax.saved_config import saved_fields
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.saved_names import NamesThere
from dlrm_jax.training.serialization import array_name

EVERYTHING = "all"
"""The name that stands for all tables and layers."""

_OF_LABELS = ("gates", "own", "shared_gate", "towers")
"""Parts of models of several labels that have an entry for each label, in their order."""

_ONE_LABEL = ("label",)

ParameterPath = tuple[Any, ...]
"""The keys of an array in nested dicts. Models may have digits and dots in them."""


def noted_start(
    source: Path | None, names: Sequence[str], before: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """What a run took its first values from, as its checkpoints note it under ``"warm_start"``.

    Args:
        source: source that is given for this start; None for none.
        names: names that are given.
        before: metadata of the checkpoint that the run resumes from; None if it is new.

    Raises:
        UserError: the run that resumes was started from something else.
    """
    given = {"source": str(source), "names": sorted(names)} if source else None
    if before is None or "warm_start" not in before:  # earlier versions didn't note it
        return given
    noted = before["warm_start"]
    if given and given != noted:
        start = f"from {','.join(noted['names'])} of {noted['source']}" if noted else "without"
        raise UserError(
            f"--warm_start is for new runs: the one that this would resume was started {start}, "
            f"not from {','.join(given['names'])} of {given['source']}. To resume it, leave out "
            f"--warm_start; or give another workdir"
        )
    return noted


def check_labels(
    labels: Sequence[str],
    source: Path,
    metadata: Mapping[str, Any],
    names: Sequence[str],
    paths: Iterable[ParameterPath],
) -> None:
    """Checks that layers of labels, which have numbers, are those of the same labels.

    Args:
        labels: names of the labels here; none for one without a name.
        source: checkpoint, for messages.
        metadata: metadata of the checkpoint.
        names: names that are taken.
        paths: paths of the parameters that are taken.

    Raises:
        UserError: they are of others. One label may start from another one.
    """
    saved = saved_fields(metadata.get("config") or {})["labels"]
    here, there = tuple(labels) or _ONE_LABEL, tuple(saved) or _ONE_LABEL
    if len(here) == len(there) == 1 or here == there[: len(here)]:
        return
    of_labels = sorted({key for path in paths for key in path if key in _OF_LABELS})
    if of_labels or EVERYTHING in names:
        raise UserError(
            f"warm start: {source} has the labels {', '.join(there)}, and this run has "
            f"{', '.join(here)}: layers of a label ({', '.join(of_labels or _OF_LABELS)}) would be "
            f"those of another; give --labels in the order of the checkpoint, or leave these "
            f"layers out of --warm_start_names"
        )


def check_only_tables(
    source: Path, metadata: Mapping[str, Any], layers: Collection[ParameterPath]
) -> None:
    """Checks that no layers are taken from two towers, whose layers are those of no other model.

    Args:
        source: checkpoint, for messages.
        metadata: metadata of the checkpoint.
        layers: paths of the parameters that are taken.

    Raises:
        UserError: some are; the message names the tables there.
    """
    if layers and "retrieval" in metadata["identity"]:
        tables = ",".join(saved_tables(metadata))
        raise UserError(
            f"warm start: {source} is one of two towers (retrieval), whose layers no other model "
            f"has; take tables alone, by --warm_start_names={tables} or some of these"
        )


def check_not_shared(learner: Learner, name: str) -> None:
    """Checks that a name isn't that of a feature that reads tables of other names."""
    read = [x.table for x in learner.collection.lookups if x.feature == name]
    if read:
        tables = ", ".join(dict.fromkeys(read))
        raise UserError(
            f"warm start: feature {name!r} has no table of its name, it reads {tables}; name "
            f"{tables} instead"
        )


def saved_tables(metadata: Mapping[str, Any]) -> list[str]:
    """The names of the tables in a checkpoint."""
    return list(dict.fromkeys(name.rpartition("/")[0] for name in metadata["arrays"]))


def saved_rows(metadata: Mapping[str, Any], table: str) -> int | None:
    """Rows of a table in a checkpoint; None if it isn't there."""
    entry = metadata["arrays"].get(f"{table}/{array_name(metadata, 'table')}")
    return entry["shape"][0] if entry else None


def check_collisions(
    learner: Learner, source: Path, metadata: Mapping[str, Any], table: str, there: NamesThere
) -> None:
    """Checks that ids have the same quotients and remainders in a checkpoint."""
    owner, _, part = table.rpartition(".")
    names = learner.collection.tables
    if part not in ("quotient", "remainder") or f"{owner}.remainder" not in names:
        return
    # There is a row for each remainder. As many quotients may be those of another divisor.
    here = names[f"{owner}.remainder"].rows
    before = saved_rows(metadata, there.table(f"{owner}.remainder"))
    if before not in (None, here):
        raise UserError(
            f"warm start: {table} has {before} collisions in {source}, expected {here}: its rows "
            f"stand for other ids; give --collisions={before}, or leave {owner}.quotient and "
            f"{owner}.remainder out of --warm_start_names"
        )
