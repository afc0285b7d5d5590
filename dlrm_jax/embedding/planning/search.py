"""The search for a placement of every table.

A beam search places one table after the other, the largest first, and keeps the best placements so
far. The best ones are then improved, one table at a time.

Every shard has as many bag positions of a block as the fullest shard. So one table on one shard
costs as much as one table on each, and placing one by one never begins to fill a block. Beams
therefore start with different numbers of *reserved* bag positions, which cost nothing more.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from dlrm_jax.embedding.planning.costs import Costs
from dlrm_jax.embedding.planning.limits import Limits, Score, score

# Placements in a beam: fewer on many shards, where each is more work.
_BEAM = 32
_BEAM_SHARDS = 512
# Bag positions reserved in each beam, as shares of those for all tables on one shard each.
_RESERVED = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
# Number of found placements to improve, and most passes over the tables.
_IMPROVED = 2
_PASSES = 20


class Search:
    """The search for a placement of all tables.

    Args:
        costs: costs of all choices.
        limits: limits that a placement should keep: memory first, then the others, then time.
    """

    def __init__(self, costs: Costs, limits: Limits):
        self._costs, self._limits = costs, limits
        sizes = [
            (load.rows.sum(axis=-1) @ costs.row_bytes + load.table_bytes).max()
            for load in costs.candidates
        ]
        largest_first = sorted(range(len(sizes)), key=lambda i: -sizes[i])
        self._open = [i for i in largest_first if len(costs.candidates[i].reads) > 1]
        self._closed = functools.reduce(
            operator.add,
            (load for load in costs.candidates if len(load.reads) == 1),
            costs.load(()),
        )
        self._second = 1.0  # the time that limits are weighed against in a beam

    def best(self) -> tuple[int, ...]:
        """The index of the choice for each table; the same costs give the same choices."""
        costs = self._costs
        if not self._open:
            return (0,) * len(costs.candidates)
        first = self._improved(self._beam(np.zeros_like(costs.position_bytes), 1))
        self._second = float(self.score(first).cost)
        bags = np.sum([load.positions.max(axis=(0, 2)) for load in costs.candidates], axis=0)
        width = min(_BEAM, max(1, _BEAM_SHARDS // costs.shards))
        found = {self._beam(np.ceil(part * bags / costs.shards), width) for part in _RESERVED}
        most = sorted(found, key=lambda chosen: (self.score(chosen)[:3], chosen))[:_IMPROVED]
        return min(first, *map(self._improved, most), key=lambda chosen: self.score(chosen)[:3])

    def score(self, chosen: Sequence[int]) -> Score:
        """The score of a placement of all tables."""
        return score(self._costs, self._limits, self._costs.load(chosen)).at(0)

    def _beam(self, reserved: Float64[np.ndarray, " K"], width: int) -> tuple[int, ...]:
        """The best placement of all tables that a beam of this width finds."""
        load = self._closed
        chosen = np.zeros((1, len(self._costs.candidates)), int)
        for placed, i in enumerate(self._open, 1):
            options = load[:, None] + self._costs.candidates[i]
            found = score(self._costs, self._limits, options, self._open[placed:], reserved)
            energies, ties = found.energy(self._second).ravel(), found.ties.ravel()
            order = np.lexsort((ties, energies))
            # Placements of equal scores differ only in the numbers of the shards.
            same = (np.diff(energies[order]) == 0) & (np.diff(ties[order]) == 0)
            kept = order[np.append(True, ~same)][:width]
            state, choice = np.unravel_index(kept, found.ties.shape)
            load, chosen = options[state, choice], chosen[state]
            chosen[:, i] = choice
        return tuple(chosen[score(self._costs, self._limits, load).order()[0]].tolist())

    def _improved(self, chosen: tuple[int, ...]) -> tuple[int, ...]:
        """Moves one table after the other until no move improves the score."""
        load, now = self._costs.load(chosen), list(chosen)
        for _ in range(_PASSES):
            before = list(now)
            for i in self._open:
                own = self._costs.candidates[i]
                options = load - own[now[i] : now[i] + 1] + own
                found = score(self._costs, self._limits, options)
                best = int(found.order()[0])
                if found.at(best)[:3] < found.at(now[i])[:3]:
                    load, now[i] = options[best : best + 1], best
            if now == before:
                break
        return tuple(now)
