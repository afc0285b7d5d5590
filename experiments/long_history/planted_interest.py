"""Generated requests whose labels depend on a history up to a horizon: the best result is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64

from dlrm_jax.requests.columns import Columns
from dlrm_jax.requests.requests import Requests

CATEGORIES = 8  # an item's category is its number modulo the categories
SKIP, VIEW, LIKE = range(3)  # the actions
_FAVOURED = 0.6  # share of a phase's actions that are on its favourite category
_LIKED = (0.1, 0.8)  # probability of a like there, while the user browses or decides
_ELSEWHERE = 0.2  # and on any other category
_PHASES = 4  # in a horizon
_GAIN, _BIAS = 2.0, -0.5

COLUMNS = Columns(
    history={"history_item": "item", "history_category": "category", "action": "action"},
    candidates={"item": "item", "category": "category"},
    context={"country": "country"},
    history_time="history_time",
    time="time",
)
ROWS = {"item": 400, "category": CATEGORIES, "action": 3, "country": 4}


@dataclasses.dataclass(frozen=True)
class PlantedInterest:
    """What decides a label: the likes of the candidate's category among the latest actions.

    A user's taste switches: phases favour a category each, which the user only browses in some. A
    candidate is clicked with the probability sigmoid(2 z - 0.5), where z is the share of the latest
    ``horizon`` actions that are likes of its category, standardized. What lies before the horizon
    says nothing, and neither do categories and actions unless one knows which go together.

    Attributes:
        requests: requests.
        probabilities: probability of each candidate's label to be 1, [N].
    """

    requests: Requests
    probabilities: Float64[np.ndarray, " N"]

    @property
    def logits(self) -> Float64[np.ndarray, " N"]:
        """The best logits."""
        return np.log(self.probabilities) - np.log1p(-self.probabilities)


def generate(
    count: int,
    candidates: int,
    horizon: int,
    longest: int,
    seed: int,
    shortest: float = 0.5,
    rows: Mapping[str, int] | None = None,
) -> PlantedInterest:
    """Draws requests.

    Args:
        count: number of requests.
        candidates: number of candidates of each.
        horizon: number of latest actions that decide.
        longest: number of actions of the longest history.
        seed: seed of the draws.
        shortest: share of it that the shortest one has.
        rows: number of rows of the tables of items and of countries, which decide nothing; None for
            400 and 4.
    """
    rows = {**ROWS, **(rows or {})}
    rng = np.random.default_rng([seed, count, horizon, longest])
    lengths = rng.integers(int(longest * shortest), longest + 1, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    category, action = _actions(rng, lengths, horizon)
    # Likes by category in each prefix of all actions, so that a horizon is a difference.
    likes = np.zeros((len(action) + 1, CATEGORIES), np.int32)
    np.cumsum(
        (category[:, None] == np.arange(CATEGORIES)) & (action == LIKE)[:, None], 0, out=likes[1:]
    )
    first = np.maximum(offsets[1:] - horizon, offsets[:-1])
    share = (likes[offsets[1:]] - likes[first]) / np.maximum(offsets[1:] - first, 1)[:, None]
    shown = rng.integers(0, CATEGORIES, (count, candidates))
    own = np.take_along_axis(share, shown, axis=1).ravel()
    z = (own - own.mean()) / own.std()
    probabilities = 1 / (1 + np.exp(-(_GAIN * z + _BIAS)))
    times = 10**6 + np.sort(rng.integers(0, 10**7, count))
    # A day back in the mean between two actions, the last of which is before the request.
    gaps = rng.exponential(3600, len(action)).astype(np.int64) + 1
    passed = np.cumsum(gaps[::-1])[::-1]
    passed -= np.repeat(np.append(passed, 0)[offsets[1:]], lengths)
    requests = Requests(
        COLUMNS,
        rows,
        {
            "history_item": _items(rng, category, rows),
            "history_category": category,
            "action": action,
        },
        offsets,
        np.repeat(times, lengths) - passed,
        {"item": _items(rng, shown.ravel(), rows), "category": shown.ravel().astype(np.int32)},
        np.arange(count + 1) * candidates,
        (rng.random(len(own)) < probabilities).astype(np.float32),
        {"country": rng.integers(0, rows["country"], count).astype(np.int32)},
        times,
    )
    return PlantedInterest(requests, probabilities)


def _actions(
    rng: np.random.Generator, lengths: np.ndarray, horizon: int
) -> tuple[np.ndarray, np.ndarray]:
    """The category and the kind of each action, one request after the other."""
    tokens, starts = int(lengths.sum()), np.cumsum(lengths) - lengths
    begins = rng.random(tokens) < _PHASES / horizon
    begins[starts] = True
    phase = np.cumsum(begins) - 1
    favourite = rng.integers(0, CATEGORIES, phase[-1] + 1)[phase]
    liked = np.asarray(_LIKED)[rng.integers(0, 2, phase[-1] + 1)][phase]
    favoured = rng.random(tokens) < _FAVOURED
    category = np.where(favoured, favourite, rng.integers(0, CATEGORIES, tokens))
    chance = np.where(category == favourite, liked, _ELSEWHERE)
    other = rng.integers(SKIP, LIKE, tokens)
    action = np.where(rng.random(tokens) < chance, LIKE, other)
    return category.astype(np.int32), action.astype(np.int32)


def _items(rng: np.random.Generator, category: np.ndarray, rows: Mapping[str, int]) -> np.ndarray:
    """An item of each category, the first ones more often."""
    popularity = 1 / np.arange(1, rows["item"] // CATEGORIES + 1)
    place = rng.choice(len(popularity), len(category), p=popularity / popularity.sum())
    return (place * CATEGORIES + category).astype(np.int32)
