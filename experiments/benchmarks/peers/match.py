"""Two contestants: first their losses are compared, then their steps are timed in turn."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from dlrm_jax.errors import UserError
from experiments.benchmarks.cores import extremes, round_trip_us
from experiments.benchmarks.peers.contestant import Contestant
from experiments.benchmarks.peers.load import QUIET, Load, wait_for_quiet
from experiments.benchmarks.timing import ratio_quartiles

COMPARED_STEPS = 10

TOLERANCE = 1e-4
"""The largest relative distance of two losses: float32, summed in another order for ten steps."""

_ATTEMPTS = 3  # rounds made for each that is asked for, if the machine isn't quiet

_PATIENCE_SECONDS = 5.0  # before a round

# A turn of a slow contestant has fewer steps, one of a fast contestant more: what it takes to go on
# after having been stopped mustn't count for much.
_LONGEST_TURN_SECONDS = 5.0
_SHORTEST_TURN_SECONDS = 0.3


@dataclasses.dataclass(frozen=True)
class Round:
    """Both contestants, one after the other.

    Attributes:
        ours: seconds of a step of ours, the mean of its turn.
        theirs: of a step of the other's.
        elsewhere: share of the machine's processor time that neither used; None if not known.
        core_round_trip_us: from `cores.round_trip_us`, after both.
    """

    ours: float
    theirs: float
    elsewhere: float | None
    core_round_trip_us: float | None


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two, over all rounds.

    Attributes:
        losses: of its first steps.
        steps_per_round: how many it made in a turn.
        peak_bytes: its largest resident memory while it made steps.
    """

    losses: tuple[float, ...]
    steps_per_round: int
    peak_bytes: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of both, and what comes of it.

    Attributes:
        ours: the one that the other is compared with.
        theirs: the other.
        all_rounds: in their order, also those that don't count.
        wanted: how many count.
    """

    ours: Side
    theirs: Side
    all_rounds: tuple[Round, ...]
    wanted: int

    @property
    def rounds(self) -> list[Round]:
        """Those that count: the first ones when the machine was quiet, or the quietest."""
        by_load = sorted(self.all_rounds, key=lambda x: max(QUIET, x.elsewhere or 0.0))
        return by_load[: self.wanted]

    @property
    def elsewhere(self) -> float | None:
        """The mean share over the rounds that count."""
        shares = [x.elsewhere for x in self.rounds if x.elsewhere is not None]
        return statistics.mean(shares) if shares else None

    @property
    def core_round_trip_us(self) -> dict[str, float] | None:
        """The extremes over the rounds that count."""
        return extremes(x.core_round_trip_us for x in self.rounds)

    @property
    def loss_distance(self) -> float:
        """The largest relative one."""
        return max(map(_distance, self.ours.losses, self.theirs.losses))

    def ratio_quartiles(self) -> tuple[float, float, float]:
        """Lower, median, upper of the other's time over ours, taken round by round."""
        return ratio_quartiles([x.theirs for x in self.rounds], [x.ours for x in self.rounds])


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
    on_quiet_round: Callable[[], Any],
) -> Outcome:
    """Times the two in turn; both are built, and the other one's losses are compared first.

    Args:
        ours: the contestant that made its first steps before.
        our_losses: of those.
        peer: a contestant that has made none.
        rounds: how often each is timed while the machine is quiet.
        steps_per_round: steps timed together, if they take neither very long nor no time.
        on_quiet_round: called after each that counts for certain.

    Raises:
        UserError: the losses differ, or a process has ended.
    """
    losses = peer.ask("losses", steps=len(our_losses))["losses"]
    check_losses(peer.name, our_losses, losses)
    # The first turn, in which all batches are seen for the first time, doesn't count.
    counts = [_fitting(x.ask("run", steps=steps_per_round), steps_per_round) for x in (ours, peer)]
    answers: list[tuple[dict[str, Any], dict[str, Any]]] = []
    made: list[Round] = []
    quiet = 0
    while quiet < rounds and len(made) < _ATTEMPTS * rounds:
        wait_for_quiet(_PATIENCE_SECONDS)
        load = Load()
        a, b = (x.ask("run", steps=n) for x, n in zip((ours, peer), counts, strict=True))
        elsewhere = load.elsewhere(a["cpu_seconds"] + b["cpu_seconds"])
        answers.append((a, b))
        made.append(Round(a["seconds"], b["seconds"], elsewhere, round_trip_us()))
        if (elsewhere or 0.0) <= QUIET:
            quiet += 1
            on_quiet_round()
    ours_answers, peer_answers = zip(*answers, strict=True)
    return Outcome(
        _side(our_losses, counts[0], ours_answers),
        _side(losses, counts[1], peer_answers),
        tuple(made),
        rounds,
    )


def _fitting(answer: dict[str, Any], steps: int) -> int:
    least = math.ceil(_SHORTEST_TURN_SECONDS / answer["seconds"])
    return max(1, min(max(steps, least), int(_LONGEST_TURN_SECONDS / answer["seconds"])))


def _side(losses: Sequence[float], steps: int, answers: Sequence[dict[str, Any]]) -> Side:
    return Side(tuple(losses), steps, max(answer["peak_bytes"] for answer in answers))


def _distance(a: float, b: float) -> float:
    return abs(a - b) / max(abs(a), 1e-30)
