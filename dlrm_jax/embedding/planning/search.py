"""Chooses a placement for every table, by beam search.

Tables are placed one after the other, the largest first, and of the placements so far the best few
are kept. Slots are bought in advance: every shard has as many of a block as the fullest, so that
one table on one shard costs as much as one on each; whether to have another slot is decided for
all shards, and tables then fill those that there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from dlrm_jax.embedding.planning.costs import EVERYWHERE, Costs
from dlrm_jax.embedding.planning.limits import Key, Limits, Outcomes, judged

# Placements kept while tables are added.
_BEAM = 12
# Slots that are tried beyond the best number before the search for more is given up.
_MISSES = 2
# While tables are added, being a part of a limit above it counts as so many times that part of the
# time of a plain plan; memory goes before all.
_UNEQUAL, _OVER = 10.0, 1000.0
_MOST_PASSES = 20
# Differences that are rounding alone.
_DIGITS = 9


@dataclasses.dataclass(frozen=True)
class _State:
    """Some tables, placed.

    Attributes:
        chosen: by table, the index of its choice; -1 for those that are still to be placed.
        rows: of the shared slabs, [S, M].
        slots: of the blocks of each shared slab, [K, M].
        reads: by shard.
        busy: by shard, in seconds.
        everywhere: the sum of what is alike on all devices, see `EVERYWHERE`.
        slabs: by shared slab, what `_slab_terms` gives.
    """

    chosen: tuple[int, ...]
    rows: np.ndarray
    slots: tuple[np.ndarray, ...]
    reads: np.ndarray
    busy: np.ndarray
    everywhere: np.ndarray
    slabs: np.ndarray


class Search:
    """The search for a placement of all tables.

    Args:
        costs: of all choices.
        limits: that a placement should keep. Keeping them goes before being fast, and fitting
            into memory before both.
    """

    def __init__(self, costs: Costs, limits: Limits):
        self._costs = costs
        self._limits = limits
        shards = costs.shards
        self._empty = _State(
            (-1,) * len(costs.candidates),
            np.zeros((len(costs.shared), shards)),
            tuple(np.zeros((len(slab.lengths), shards)) for slab in costs.shared),
            np.zeros(shards),
            np.zeros(shards),
            np.zeros(len(EVERYWHERE)),
            np.zeros((len(costs.shared), 5)),
        )
        # What a table that is out will bring to the mean shard: bytes, reads, busy seconds.
        whole = [
            (
                table.rows.sum(axis=1).max() * costs.shared[slab].row_bytes,
                table.reads.sum(axis=1).max(),
                table.busy.sum(axis=1).max(),
            )
            for table, slab in zip(costs.candidates, costs.slab, strict=True)
        ]
        self._expected = np.array(whole) / shards
        size = [
            nbytes + table.everywhere[:, EVERYWHERE.index("held")].max()
            for (nbytes, _, _), table in zip(whole, costs.candidates, strict=True)
        ]
        self._order = sorted(range(len(size)), key=lambda i: -size[i])
        self._second = 1.0  # the unit of time that limits are weighed against

    def best(self) -> tuple[int, ...]:
        """By table, the index of the choice taken. Always the same for the same costs."""
        if all(len(table.choices) == 1 for table in self._costs.candidates):
            return (0,) * len(self._costs.candidates)
        nothing = tuple(np.zeros(len(slab.lengths)) for slab in self._costs.shared)
        plain = self._improved(self._placed(nothing, 1)[0])
        self._second = self._key(plain).seconds
        bought = self._buy(nothing)
        found = [self._improved(state) for state in self._placed(bought, _BEAM)[:3]]
        return min([plain, *found], key=self._key).chosen

    def key(self, chosen: Sequence[int]) -> Key:
        """Of a placement of all tables."""
        state = self._empty
        for i, choice in enumerate(chosen):
            state = self._with(state, i, choice)
        return self._key(state)

    def _buy(self, slots: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """How many slots of each block to have on every shard."""
        least = self._energy(self._placed(slots, 1)[0])
        for block in (one for slab in slots for one in np.split(slab, len(slab))):
            kept, misses = 0, 0
            while misses < _MISSES and block[0] < len(self._order):
                block += 1
                energy = self._energy(self._placed(slots, 1)[0])
                misses += 1
                if energy < least:
                    least, kept, misses = energy, block[0], 0
            block[:] = kept
        return slots

    def _placed(self, bought: tuple[np.ndarray, ...], width: int) -> list[_State]:
        """The best placements of all tables that a beam of this width finds, the best first."""
        beam = [self._empty]
        for i in self._order:
            found: dict[tuple[float, float], tuple[int, int]] = {}
            for number, state in enumerate(beam):
                outcomes = self._outcomes(state, i, bought)
                energies = self._energies(outcomes)
                best = np.lexsort((outcomes.ties, energies))[:width]
                for choice in best:
                    # Equal ones differ in the numbers of the shards alone.
                    key = (float(energies[choice]), float(outcomes.ties[choice]))
                    found.setdefault(key, (number, int(choice)))
            kept = sorted(found.items())[:width]
            beam = [self._with(beam[number], i, choice) for _, (number, choice) in kept]
        return sorted(beam, key=self._energy)

    def _improved(self, state: _State) -> _State:
        """Moves one table after the other until no move is an improvement."""
        nothing = tuple(np.zeros(len(slab.lengths)) for slab in self._costs.shared)
        key = self._key(state)
        for _ in range(_MOST_PASSES):
            start = key
            for i in self._order:
                without = self._with(state, i, -1)
                outcomes = self._outcomes(without, i, nothing)
                order = np.lexsort(
                    (outcomes.ties, outcomes.seconds, outcomes.unequal, outcomes.over)
                )
                moved = self._with(without, i, int(order[0]))
                if self._key(moved) < key:
                    state, key = moved, self._key(moved)
            if key == start:
                break
        return state

    def _energy(self, state: _State) -> float:
        over, unequal, seconds = self._key(state)
        return seconds / self._second + _UNEQUAL * unequal + _OVER * over

    def _energies(self, outcomes: Outcomes) -> Float64[np.ndarray, " O"]:
        energies = outcomes.seconds / self._second + _UNEQUAL * outcomes.unequal
        return np.round(energies + _OVER * outcomes.over, _DIGITS)

    def _with(self, state: _State, i: int, choice: int) -> _State:
        """The state with a table placed otherwise; -1 takes it out."""
        table, slab = self._costs.candidates[i], self._costs.slab[i]
        rows, slots = state.rows.copy(), list(state.slots)
        reads, busy, everywhere = state.reads, state.busy, state.everywhere
        for index, sign in ((state.chosen[i], -1.0), (choice, 1.0)):
            if index >= 0:
                rows[slab] += sign * table.rows[index]
                bags = sign * self._costs.bags[i][:, None]
                slots[slab] = slots[slab] + bags * table.slots[index]
                reads = reads + sign * table.reads[index]
                busy = busy + sign * table.busy[index]
                everywhere = everywhere + sign * table.everywhere[index]
        chosen = (*state.chosen[:i], choice, *state.chosen[i + 1 :])
        slabs = state.slabs.copy()
        nothing = np.zeros(len(slots[slab]))
        slabs[slab] = self._slab_terms(slab, rows[slab][None], slots[slab][:, None], nothing)[0]
        return _State(chosen, rows, tuple(slots), reads, busy, everywhere, slabs)

    def _key(self, state: _State) -> Key:
        out = [i for i, choice in enumerate(state.chosen) if choice < 0]
        outcomes = judged(
            self._limits,
            self._costs.share,
            state.slabs.sum(axis=0)[None],
            state.everywhere[None],
            state.reads[None],
            state.busy[None],
            self._expected[out].sum(axis=0),
        )
        return Key(*(float(values[0]) for values in outcomes[:3]))

    def _outcomes(self, state: _State, i: int, bought: tuple[np.ndarray, ...]) -> Outcomes:
        """What comes of each choice for a table that is out, with all others as they are.

        Args:
            state: other tables may be out as well.
            i: the table.
            bought: by shared slab, slots of each block that cost nothing more.
        """
        table, slab = self._costs.candidates[i], self._costs.slab[i]
        slots = state.slots[slab][:, None] + self._costs.bags[i][:, None, None] * table.slots
        slabs = self._slab_terms(slab, state.rows[slab] + table.rows, slots, bought[slab])
        slabs = slabs + (state.slabs.sum(axis=0) - state.slabs[slab])
        out = [j for j, choice in enumerate(state.chosen) if choice < 0 and j != i]
        return judged(
            self._limits,
            self._costs.share,
            slabs,
            state.everywhere + table.everywhere,
            state.reads + table.reads,
            state.busy + table.busy,
            self._expected[out].sum(axis=0),
        )

    def _slab_terms(
        self,
        slab: int,
        rows: Float64[np.ndarray, "O M"],
        slots: Float64[np.ndarray, "K O M"],
        bought: Float64[np.ndarray, " K"],
    ) -> Float64[np.ndarray, "O 5"]:
        """Of one slab: bytes held and needed, bytes exchanged and needed, seconds."""
        shared = self._costs.shared[slab]
        height, count = rows.max(axis=1), np.maximum(slots.max(axis=2), bought[:, None])
        update = self._costs.timing.update_seconds(
            shared.kind,
            shared.kind.dim,
            height,
            shared.lengths @ count,
            count.sum(axis=0),
        )
        return np.stack(
            [
                height * shared.row_bytes,
                rows.mean(axis=1) * shared.row_bytes,
                shared.slot_bytes @ count,
                shared.slot_bytes @ slots.mean(axis=2),
                shared.slot_seconds @ count + update,
            ],
            axis=1,
        )
