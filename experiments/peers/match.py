"""Two contestants: first their losses are compared, then their steps are timed in turn."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from dlrm_jax.errors import UserError
from experiments.peers.contestant import Contestant

COMPARED_STEPS = 10

TOLERANCE = 1e-4
"""The largest relative distance of two losses: float32, summed in another order for ten steps."""

# A round of a slow contestant has fewer steps.
_ROUND_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Side:
    """What one of the two has done.

    Attributes:
        losses: of its first steps.
        seconds: of a step, the mean of each round.
        steps_per_round: how many it made.
        peak_bytes: its largest resident memory while it made steps.
        idle_cpu_share: processor time that it used while the other one was timed, over that time:
            not 0 if threads of it keep spinning.
    """

    losses: tuple[float, ...]
    seconds: tuple[float, ...]
    steps_per_round: int
    peak_bytes: int
    idle_cpu_share: float


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of both, and what comes of it.

    Attributes:
        ours: the one that the other is compared with.
        theirs: the other.
        ratios: its time over ours, for each round.
    """

    ours: Side
    theirs: Side

    @property
    def ratios(self) -> list[float]:
        """Round by round, whose two timings saw the same machine."""
        pairs = zip(self.ours.seconds, self.theirs.seconds, strict=True)
        return [theirs / ours for ours, theirs in pairs]

    @property
    def loss_distance(self) -> float:
        """The largest relative one."""
        return max(map(_distance, self.ours.losses, self.theirs.losses))

    def quartiles(self) -> tuple[float, float, float]:
        """Of the ratios: lower, median, upper."""
        if len(self.ratios) == 1:
            return (self.ratios[0],) * 3
        lower, median, upper = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return lower, median, upper


def check_losses(name: str, ours: Sequence[float], theirs: Sequence[float]) -> None:
    """Both must have computed the same.

    Args:
        name: of the other contestant.
        ours: losses of the first steps.
        theirs: the other one's.

    Raises:
        UserError: naming the first step at which they differ.
    """
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if not _distance(a, b) <= TOLERANCE:  # also catches NaN
            raise UserError(
                f"{name} computes something else: at step {step} its loss is {b:.8g}, ours is "
                f"{a:.8g}; expected a relative distance of at most {TOLERANCE:g}, got "
                f"{_distance(a, b):.2g}"
            )


def play(
    ours: Contestant,
    our_losses: Sequence[float],
    peer: Contestant,
    rounds: int,
    steps_per_round: int,
    on_round: Callable[[], Any],
) -> Outcome:
    """Times the two in turn; both are built, and the other one's losses are compared first.

    Args:
        ours: the contestant that made its first steps before.
        our_losses: of those.
        peer: a contestant that has made none.
        rounds: how often each is timed.
        steps_per_round: steps timed together, of a contestant that isn't slow.
        on_round: called after each.

    Raises:
        UserError: the losses differ, or a process has ended.
    """
    losses = peer.ask("losses", steps=len(our_losses))["losses"]
    check_losses(peer.name, our_losses, losses)
    pair = (ours, peer)
    counts = []
    for contestant in pair:  # also the first that is seen of all batches
        seconds = contestant.ask("run", steps=steps_per_round)["seconds"]
        counts.append(max(1, min(steps_per_round, int(_ROUND_SECONDS / seconds))))
    answers: tuple[list[dict[str, Any]], ...] = ([], [])
    for _ in range(rounds):
        for contestant, count, mine in zip(pair, counts, answers, strict=True):
            mine.append(contestant.ask("run", steps=count))
        on_round()
    busy = [
        sum(answer["seconds"] for answer in mine) * count
        for mine, count in zip(answers, counts, strict=True)
    ]
    sides = [
        Side(
            losses=tuple(its_losses),
            seconds=tuple(answer["seconds"] for answer in mine),
            steps_per_round=count,
            peak_bytes=max(answer["peak_bytes"] for answer in mine),
            idle_cpu_share=sum(answer["idle_cpu_seconds"] for answer in mine) / others,
        )
        for its_losses, mine, count, others in zip(
            (our_losses, losses), answers, counts, reversed(busy), strict=True
        )
    ]
    return Outcome(*sides)


def _distance(a: float, b: float) -> float:
    return abs(a - b) / max(abs(a), 1e-30)
