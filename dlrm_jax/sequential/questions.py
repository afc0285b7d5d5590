"""What is asked of a model: which item comes next after a part of a user's history."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from dlrm_jax.errors import UserError
from dlrm_jax.sequential.interactions import Interactions

SPLITS = ("leave_one_out", "time")
"""The ways to split interactions."""


class Questions(NamedTuple):
    """Interactions that are asked for, each by those of its user before it.

    Attributes:
        firsts: place of the first interaction of the history, [Q].
        asked: place of the interaction that is asked for, the end of the history, [Q].
    """

    firsts: Int64[np.ndarray, " Q"]
    asked: Int64[np.ndarray, " Q"]


class Split(NamedTuple):
    """Interactions for training, and questions.

    Attributes:
        train: place of the first interaction of each user, and of the one behind its last one for
            training, [U, 2].
        validation: questions by which a checkpoint is chosen.
        test: questions of the results.
    """

    train: Int64[np.ndarray, "U 2"]
    validation: Questions
    test: Questions


def split_of(interactions: Interactions, how: str) -> Split:
    """Splits interactions.

    Args:
        interactions: interactions.
        how: ``leave_one_out`` asks for each user's last interaction, and for validation the last
            but one; users with fewer than three are trained on alone. ``time`` trains on the first
            eight tenths of all interactions, and asks for each user's first one in the ninth tenth
            and in the last one.

    Raises:
        UserError: there is no such split, or nothing is left to train on or to ask for.
    """
    starts, ends = interactions.offsets[:-1], interactions.offsets[1:]
    if how == "leave_one_out":
        whole = ends - starts >= 3
        train_ends = np.where(whole, ends - 2, ends)
        found = (
            Questions(starts[whole], ends[whole] - 2),
            Questions(starts[whole], ends[whole] - 1),
        )
    elif how == "time":
        times = np.sort(interactions.times)
        cuts = times[len(times) * 8 // 10], times[len(times) * 9 // 10]
        # Places of the first interaction at or behind a time, for each user.
        first, second = (_first_from(interactions, cut) for cut in cuts)
        train_ends = first
        found = tuple(
            Questions(starts[has], place[has])
            for place, end in ((first, second), (second, ends))
            for has in [(starts < place) & (place < end)]
        )
    else:
        raise UserError(f"split: expected one of {', '.join(SPLITS)}, got {how!r}")
    train = np.stack([starts, train_ends], axis=1)
    if not (train[:, 1] - train[:, 0] >= 2).any():
        raise UserError(f"split={how}: no user has two interactions to train on")
    if not len(found[1].asked):
        raise UserError(f"split={how}: there is no interaction to ask for; give a longer log")
    return Split(train, *found)


def _first_from(interactions: Interactions, time: np.int64) -> Int64[np.ndarray, " U"]:
    before = np.concatenate([[0], np.cumsum(interactions.times < time)])
    starts, ends = interactions.offsets[:-1], interactions.offsets[1:]
    return starts + before[ends] - before[starts]
