"""Generated histories whose order decides what follows, so the best possible ranking is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
from jaxtyping import Float64, Int32, Int64

from dlrm_jax.sequential.interactions import Interactions
from dlrm_jax.sequential.questions import Questions

_SUCCESSORS = 8  # items that one item is followed by, unless chance decides
_BACK = 5  # places to the second item that decides
_SHARES = (0.5, 0.35, 0.15)  # of the last item, of the one `_BACK` places before, of fame


@dataclasses.dataclass(frozen=True)
class PlantedOrder:
    """What decides which item follows.

    An item is followed by a successor of the last item with probability 0.5, with 0.35 by one of
    the item five places back, if there is one, else by an item drawn by fame. The order of a
    history's other items tells nothing, and neither does the set of its items alone.

    Attributes:
        successors: items that each item is followed by, the most frequent first, [V, 8].
        fame: probability of each item to be drawn at random, [V].
    """

    successors: Int32[np.ndarray, "V S"]
    fame: Float64[np.ndarray, " V"]

    @property
    def of_successors(self) -> Float64[np.ndarray, " S"]:
        """The probability of each successor: 1 / its place, normalized."""
        shares = 1 / np.arange(1, _SUCCESSORS + 1)
        return shares / shares.sum()

    def probabilities(
        self, last: Int32[np.ndarray, " n"], back: Int32[np.ndarray, " n"]
    ) -> Float64[np.ndarray, "n V"]:
        """The probability of each item to follow.

        Args:
            last: last item of each history.
            back: item five places before the one that follows; negative without one.
        """
        has_back = back >= 0
        found = np.tile(self.fame, (len(last), 1))
        found *= np.where(has_back, _SHARES[2], _SHARES[1] + _SHARES[2])[:, None]
        row = np.arange(len(last))[:, None]
        np.add.at(found, (row, self.successors[last]), _SHARES[0] * self.of_successors)
        of_back = _SHARES[1] * self.of_successors * has_back[:, None]
        np.add.at(found, (row, self.successors[np.maximum(back, 0)]), of_back)
        return found


def planted_order(items: int, seed: int) -> PlantedOrder:
    """Draws successors and fame, which falls as 1 / place.

    Args:
        items: number of items.
        seed: seed of the draws.
    """
    rng = np.random.default_rng([seed, items])
    fame = 1 / np.arange(1, items + 1)
    successors = np.stack([rng.permutation(items)[:_SUCCESSORS] for _ in range(items)])
    return PlantedOrder(successors.astype(np.int32), rng.permutation(fame / fame.sum()))


def generate(order: PlantedOrder, users: int, longest: int, seed: int) -> Interactions:
    """Draws histories of 10 to ``longest`` items, a second to a day between two of them.

    Args:
        order: cause of what follows.
        users: number of users.
        longest: number of interactions of the longest history, at least 10.
        seed: seed of the draws.
    """
    rng, count = np.random.default_rng([seed, users]), len(order.fame)
    lengths = rng.integers(10, longest + 1, users)
    drawn = np.zeros((users, longest), np.int32)
    drawn[:, 0] = rng.choice(count, users, p=order.fame)
    for place in range(1, longest):
        way, nth = rng.random(users), rng.choice(_SUCCESSORS, users, p=order.of_successors)
        found = rng.choice(count, users, p=order.fame)
        has_back = place >= _BACK
        back = drawn[:, place - _BACK] if has_back else drawn[:, 0]
        by_back = (way >= _SHARES[0]) & (way < _SHARES[0] + _SHARES[1]) & has_back
        found = np.where(way < _SHARES[0], order.successors[drawn[:, place - 1], nth], found)
        drawn[:, place] = np.where(by_back, order.successors[back, nth], found)
    times = np.cumsum(np.exp(rng.uniform(0, np.log(86400), drawn.shape)).astype(np.int64), axis=1)
    there = np.arange(longest) < lengths[:, None]
    names = [str(number) for number in range(max(users, count))]
    return Interactions(
        np.concatenate([[0], np.cumsum(lengths)]),
        drawn[there],
        times[there],
        pl.Series(names[:users]),
        pl.Series(names[:count]),
    )


def planted_probabilities(
    order: PlantedOrder, interactions: Interactions, questions: Questions
) -> Float64[np.ndarray, "Q V"]:
    """The probability of each item to be what each question asks for.

    Args:
        order: cause of what has followed.
        interactions: result of `generate`.
        questions: questions.
    """
    asked, items = questions.asked, interactions.items
    back = np.where(asked - questions.firsts >= _BACK, items[asked - _BACK], -1)
    return order.probabilities(items[asked - 1], back.astype(np.int32))


def planted_places(
    order: PlantedOrder, interactions: Interactions, questions: Questions
) -> Int64[np.ndarray, " Q"]:
    """The places of the chosen items in the ranking by their probabilities, ties included.

    Args:
        order: cause of what has followed.
        interactions: result of `generate`.
        questions: questions.
    """
    found = planted_probabilities(order, interactions, questions)
    own = found[np.arange(len(found)), interactions.items[questions.asked]]
    return (found >= own[:, None]).sum(axis=1) - 1
