"""The map from 64-bit ids to the rows of a table, which changes while it is trained."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Shaped, UInt8, UInt64

from dlrm_jax.console import status
from dlrm_jax.dynamic_ids import native_id_map
from dlrm_jax.dynamic_ids.keys import Keys, as_keys
from dlrm_jax.dynamic_ids.native_id_map import NativeIdMap
from dlrm_jax.dynamic_ids.occupants import MOST_TIME, OCCUPANT, Changes, Occupants, Undo
from dlrm_jax.dynamic_ids.plain_id_map import PlainIdMap
from dlrm_jax.dynamic_ids.policy import DynamicIds
from dlrm_jax.errors import UserError, shown
from dlrm_jax.native import id_map as native
from dlrm_jax.native import library

_BATCHES = itertools.count(1)  # of all maps: another map's record is told from the own ones


class Translated(NamedTuple):
    """A batch of ids as rows.

    Attributes:
        rows: row of each id, [N] in the order of the ids.
        fresh: rows whose id is new, [F] in the order in which the ids first occur: their values
            and optimizer state must begin afresh before the batch is trained on.
        undo: record that takes the map back to before the batch.
    """

    rows: Int32[np.ndarray, " N"]
    fresh: Int32[np.ndarray, " F"]
    undo: Undo


class IdMap:
    """A map from ids to rows; no two ids have the same row, unless it is a default.

    The same batches give the same rows, with and without native kernels. Ids are any 64 bits;
    signed ones count as the unsigned ones of the same bits. Free rows are handed out ascending.

    Args:
        rows: rows of the table, defaults included.
        policy: rules by which ids get and lose rows.
        seed: seed of all hashes, 0 to 2^63 - 1.
        name: name of the table, for messages; of a part, such as "items, part 3 of 16".

    Raises:
        UserError: there are too few rows, or the seed is out of range.
    """

    def __init__(self, rows: int, policy: DynamicIds, seed: int = 0, name: str = "ids"):
        self._start(Occupants(rows, policy, seed), name)

    def _start(self, state: Occupants, name: str) -> None:
        self.name, self._state, self._batch = name, state, 0
        if native.available():
            self._engine = NativeIdMap(state)
        else:
            _announce()
            self._engine = PlainIdMap(state)

    @classmethod
    def from_arrays(
        cls, policy: DynamicIds, arrays: Mapping[str, np.ndarray], name: str = "ids"
    ) -> IdMap:
        """The map that `arrays` gave.

        Args:
            policy: rules of that map.
            arrays: arrays by name.
            name: name of the table, for messages.

        Raises:
            UserError: an array is missing, has another dtype or shape, or contradicts another.
        """
        made = cls.__new__(cls)
        made._start(Occupants.from_arrays(policy, arrays), name)
        return made

    def __reduce__(self):
        # Kernels know addresses: a copy, pickled or not, has arrays and an index of its own.
        # Records take it back as they do this one.
        arguments = self._state.policy, self.arrays(), self.name
        return IdMap.from_arrays, arguments, {"_batch": self._batch}

    @property
    def live(self) -> int:
        """The number of ids that have a row."""
        return self._state.live

    @property
    def capacity(self) -> int:
        """The number of ids that may have a row."""
        return self._state.capacity

    @property
    def clock(self) -> int:
        """The time of the last batch; 0 before the first."""
        return self._state.clock

    @property
    def nbytes(self) -> int:
        """Bytes that the map takes with native kernels, besides those of a batch."""
        state = self._state
        return state.by_row.nbytes + state.sketch.nbytes + NativeIdMap.nbytes(state)

    def translate(self, ids: Any, now: int) -> Translated:
        """The rows of a batch; ids without a row get one if the policy admits them.

        A known id is counted and seen now. Where rows are lacking, ids that aren't in this batch
        lose theirs. Ids that aren't admitted read a default row.

        Args:
            ids: integers of 64 bits or less, [N], in the order in which they count.
            now: time of the batch, in any unit, such as steps or seconds; at least the last one.

        Raises:
            UserError: ids are no integers, [N], the batch needs more rows than there are, or the
                clock runs backwards. The map is as before.
        """
        return translate_all([self], [ids], now)[0]

    def find(self, ids: Any) -> Int32[np.ndarray, " N"]:
        """The rows of ids, for evaluation and serving; nothing changes.

        Args:
            ids: integers of 64 bits or less, [N].

        Returns:
            Rows; that of an id without one is a default, a row below ``policy.defaults``.

        Raises:
            UserError: ids are no integers, [N].
        """
        return self._engine.find(as_keys(ids, f"table {self.name}: ids"))

    def undo(self, undo: Undo) -> None:
        """Takes the map itself back to before its last batch.

        Args:
            undo: record of that batch.

        Raises:
            UserError: it is another one's. The map is as before.
        """
        self._check_last([undo])
        self._engine.restore(undo.rows, undo.before)
        self._state.undo(undo)
        self._batch = undo.previous

    def arrays(self, undone: Sequence[Undo] = ()) -> dict[str, np.ndarray]:
        """Copies of all that the map is, for a checkpoint; see `Occupants.arrays`.

        Args:
            undone: records of the last batches, the latest last, which the copies are without:
                those that were translated ahead of the checkpoint's step.

        Raises:
            UserError: they are others.
        """
        self._check_last(undone)
        return self._state.arrays(undone)

    def keys(self, undone: Sequence[Undo] = ()) -> Keys:
        """Copies of the ids of the rows, see `arrays`."""
        self._check_last(undone)
        return self._state.keys(undone)

    def _check_last(self, undone: Sequence[Undo]) -> None:
        """Checks that records are those of the last batches, the latest last."""
        batch = self._batch
        for undo in reversed(undone):
            if undo.batch != batch:
                raise UserError(
                    f"table {self.name}: undo: expected the record of the map's last batch, got "
                    f"another one; take batches back in the reverse of their order, each once"
                )
            batch = undo.previous

    def _check_clock(self, now: int) -> None:
        if not isinstance(now, int | np.integer) or not 0 <= now < MOST_TIME:
            raise UserError(f"now: expected an integer from 0 to 2^62 - 1, got {shown(now)}")
        if now < self.clock:
            raise UserError(
                f"table {self.name}: now: the clock of an id map can't run backwards, got {now} "
                f"after {self.clock}; give batches in the order of their time"
            )

    def _halve(self) -> UInt8[np.ndarray, " C"] | None:
        """Halves the counts of the sketch if that is due: the sketch before, or else None."""
        state = self._state
        if state.additions < state.policy.sketch_window(len(state.by_row)):
            return None
        sketch = state.sketch.copy()
        state.sketch >>= 1
        state.additions //= 2
        return sketch

    def _sweep(self, now: int) -> tuple[Int32[np.ndarray, " n"], Shaped[np.ndarray, " n"]]:
        """Frees rows of old ids if that is due: the rows, and what they were before."""
        state = self._state
        every = state.policy.sweep_every
        if every is None or now - state.swept < every:
            return np.zeros(0, np.int32), np.zeros(0, OCCUPANT)
        rows = state.expired(now)
        before = state.by_row[rows]
        self._engine.remove(rows)
        state.swept = now
        return rows, before


def translate_all(
    maps: Sequence[IdMap], ids: Sequence[Any], now: int, threads: int | None = None
) -> list[Translated]:
    """The rows of a batch of each of several tables, whose maps change side by side.

    The result doesn't depend on the number of threads. See `IdMap.translate`.

    Args:
        maps: maps, each once.
        ids: ids of each map, [N] integers each.
        now: time of the batch, at least the last one of each map.
        threads: most threads to use; None for one on each processor.

    Raises:
        UserError: ids are no integers, [N], a map has too few rows, or its clock runs backwards.
            All maps are as before.
    """
    keys = [as_keys(x, f"table {of.name}: ids") for of, x in zip(maps, ids, strict=True)]
    assert len(maps) == len({id(x) for x in maps})
    for of in maps:
        of._check_clock(now)
    now = int(now)
    numbers = [of._state.numbers for of in maps]
    halved = [of._halve() for of in maps]
    swept = [of._sweep(now) for of in maps]
    changes = _translate([of._engine for of in maps], keys, now, threads)
    undos = [
        Undo(
            np.concatenate([rows, x.changed]),
            np.concatenate([before, x.before]),
            x.cells,
            x.cells_before,
            sketch,
            before_all,
            next(_BATCHES),
            of._batch,
        )
        for of, (rows, before), x, sketch, before_all in zip(
            maps, swept, changes, halved, numbers, strict=True
        )
    ]
    for of, undo in zip(maps, undos, strict=True):
        of._batch = undo.batch
    full = [i for i, of in enumerate(maps) if changes[i].needed > of.capacity]
    if full:
        for of, undo in zip(maps, undos, strict=True):
            of.undo(undo)
        i = full[0]
        raise UserError(
            f"table {maps[i].name}: a batch of {len(keys[i])} ids needs rows for "
            f"{changes[i].needed} different ones, but it has {maps[i].capacity} besides its "
            f"defaults; give the table more rows, or fewer parts if it has several: a run that "
            f"resumes with them keeps its ids"
        )
    for of in maps:
        of._state.clock = now
    return [Translated(x.rows, x.fresh, undo) for x, undo in zip(changes, undos, strict=True)]


def _translate(
    engines: Sequence[NativeIdMap | PlainIdMap],
    keys: Sequence[UInt64[np.ndarray, " _"]],
    now: int,
    threads: int | None,
) -> list[Changes]:
    by_kernels = [x for x in engines if isinstance(x, NativeIdMap)]
    in_python = [x for x in engines if isinstance(x, PlainIdMap)]
    if not by_kernels:
        return [x.translate(y, now) for x, y in zip(in_python, keys, strict=True)]
    return native_id_map.translate(by_kernels, keys, now, threads)


@functools.cache
def _announce() -> None:
    status(
        f"note: ids of dynamic tables are mapped in plain Python, which is slow: native kernels "
        f"aren't built, or not allowed ({library.SETTING}, {library.USE})",
        error=True,
    )
