"""A match of two contestants: compares their losses, then times their steps in turn."""

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
from experiments.benchmarks.peers.problem import Precision
from experiments.benchmarks.timing import ratio_quartiles

COMPARED_STEPS = 10

TOLERANCES: dict[Precision, float] = {"float32": 1e-4, "bfloat16": 4e-3}
"""The largest relative distance of two losses of ten steps.

In float32 these are sums in another order. In bfloat16 it is one rounding, 2**-8: `torch.autocast`
rounds each layer's bias and result, the logits among them, which we sum in float32. The distance
was up to 4e-4 on ``kaggle``, up to 2.2e-3 on ``small`` with 100 rows a table.
"""

UNSTEADY = 0.1
"""The largest distance of the quartiles of a match's ratios, as a share of their median."""

_ATTEMPTS = 3  # maximum number of rounds for each wanted one, if the machine isn't quiet

_PATIENCE_SECONDS = 5.0  # before a round

# A slow contestant's turn has fewer steps, a fast one's more: the cost of continuing
# after a stop must stay small.
_LONGEST_TURN_SECONDS = 5.0
_SHORTEST_TURN_SECONDS = 0.3


@dataclasses.dataclass(frozen=True)
class Round:
    """One turn of each contestant.

    Attributes:
        ours, theirs: mean seconds of a step.
        elsewhere: share of the machine's processor time used by other programs; None if unknown.
        core_round_trip_us: latency from `cores.round_trip_us`, after both turns.
    """

    ours: float
    theirs: float
    elsewhere: float | None
    core_round_trip_us: float | None


@dataclasses.dataclass(frozen=True)
class Side:
    """One contestant: the losses of its first steps, the steps in a turn, and its peak memory."""

    losses: tuple[float, ...]
    steps_per_round: int
    peak_bytes: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of a match: all rounds in order, of which as many as are wanted count."""

    ours: Side
    theirs: Side
    all_rounds: tuple[Round, ...]
    wanted: int

    @property
    def rounds(self) -> list[Round]:
        """The rounds that count: the first ones while the machine was quiet, or the quietest."""
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
        """The largest relative distance of two losses."""
        return max(map(_distance, self.ours.losses, self.theirs.losses))

    def ratio_quartiles(self) -> tuple[float, float, float]:
        """The quartiles of the other's time over ours, round by round."""
        return ratio_quartiles([x.theirs for x in self.rounds], [x.ours for x in self.rounds])

    @property
    def is_unsteady(self) -> bool:
        """Whether the ratios of the rounds that count differ by more than `UNSTEADY`."""
        lower, median, upper = self.ratio_quartiles()
        return upper - lower > UNSTEADY * median


def check_losses(
    name: str, ours: Sequence[float], theirs: Sequence[float], precision: Precision
) -> None:
    """Checks that a peer has computed the losses of ours, as closely as the precision allows.

    Raises:
        UserError: losses differ; the message names the first step.
    """
    tolerance = TOLERANCES[precision]
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if not _distance(a, b) <= tolerance:  # also catches NaN
            raise UserError(
                f"{name} computes something else: at step {step} its loss is {b:.8g}, ours is "
                f"{a:.8g}; expected a relative distance of at most {tolerance:g}, got "
                f"{_distance(a, b):.2g}"
            )


def play(
    ours: Contestant,
    our_losses: Sequence[float],
    peer: Contestant,
    precision: Precision,
    rounds: int,
    steps_per_round: int,
    on_quiet_round: Callable[[], Any],
) -> Outcome:
    """Times two contestants in turn, after comparing the losses of their first steps.

    ``rounds`` is the number of rounds while the machine is quiet, ``steps_per_round`` that of steps
    timed together unless they are very slow or very fast. ``on_quiet_round`` is called after each
    round that is sure to count.

    Raises:
        UserError: the losses differ, or a process has ended.
    """
    losses = peer.ask("losses", steps=len(our_losses))["losses"]
    check_losses(peer.name, our_losses, losses, precision)
    # The first turn, which reads all batches for the first time, doesn't count.
    counts = [_fitting(x.ask("run", steps=steps_per_round), steps_per_round) for x in (ours, peer)]
    answers: list[tuple[dict[str, Any], dict[str, Any]]] = []
    played: list[Round] = []
    quiet = 0
    while quiet < rounds and len(played) < _ATTEMPTS * rounds:
        wait_for_quiet(_PATIENCE_SECONDS)
        load = Load()
        a, b = (x.ask("run", steps=n) for x, n in zip((ours, peer), counts, strict=True))
        elsewhere = load.elsewhere(a["cpu_seconds"] + b["cpu_seconds"])
        answers.append((a, b))
        played.append(Round(a["seconds"], b["seconds"], elsewhere, round_trip_us()))
        if (elsewhere or 0.0) <= QUIET:
            quiet += 1
            on_quiet_round()
    ours_peak, peer_peak = (max(a["peak_bytes"] for a in own) for own in zip(*answers, strict=True))
    return Outcome(
        Side(tuple(our_losses), counts[0], ours_peak),
        Side(tuple(losses), counts[1], peer_peak),
        tuple(played),
        rounds,
    )


def _fitting(answer: dict[str, Any], steps: int) -> int:
    least = math.ceil(_SHORTEST_TURN_SECONDS / answer["seconds"])
    return max(1, min(max(steps, least), int(_LONGEST_TURN_SECONDS / answer["seconds"])))


def _distance(a: float, b: float) -> float:
    return abs(a - b) / max(abs(a), 1e-30)
