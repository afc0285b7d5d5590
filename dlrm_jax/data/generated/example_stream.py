"""Criteo-shaped examples without end, chunk by chunk, in days."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, UInt32

from dlrm_jax.data.formats.criteo_format import EMPTY, LARGEST_INTEGER, mix
from dlrm_jax.data.formats.criteo_text import CATEGORICALS, INTEGERS
from dlrm_jax.data.generated.locality import LocalIds, StackProfile
from dlrm_jax.data.generated.teacher import Teacher, check_ranges, sigmoid
from dlrm_jax.data.generated.zipf import zipf_quantile
from dlrm_jax.errors import UserError

CHUNK = 1 << 14
"""Number of examples drawn together. The numbers depend on it."""

# Shares of the integers that are 0. A reader that treats missing and negative ones as 0 loses
# nothing that the teacher uses.
_EMPTY_SHARE, _NEGATIVE_SHARE = 0.4, 0.1


@dataclass(frozen=True)
class Chunk:
    """N consecutive examples.

    Attributes:
        labels: 0 or 1, [N].
        integers: counts, [N, 13]; some of the zeros are -1 or `EMPTY` instead.
        dense: log(1 + count), [N, 13].
        ids: row of each table, [N, 26].
        logits: true log odds of label 1, [N].
    """

    labels: Int32[np.ndarray, " N"]
    integers: Int32[np.ndarray, "N 13"]
    dense: Float32[np.ndarray, "N 13"]
    ids: Int32[np.ndarray, "N 26"]
    logits: Float32[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, examples: int) -> Chunk:
        """The first ``examples`` examples, without a copy."""
        arrays = (self.labels, self.integers, self.dense, self.ids, self.logits)
        return Chunk(*(array[:examples] for array in arrays))


class ExampleStream:
    """Draws dense features, ids, and labels by the planted teacher.

    Ids follow Zipf's law or a profile of temporal locality. With a profile, they count from 0 in
    the order of their first access, over all days.

    With Zipf's law, an id has a birthday; before it, another id is drawn in its place. On each day
    after the first, a share `drift` of each table's ids is new. Id 0 exists from the start.

    Args:
        table_rows: rows of the 26 tables.
        zipf_exponent: exponent s of Zipf's law, from 0 (uniform) on. With a profile, it is the law
            of the number of ids that share an effect.
        seed: seed of the teacher and the examples.
        days: number of days.
        drift: share of the ids that are born on each day after the first.
        profile: locality of the ids; None for Zipf's law.

    Raises:
        UserError: an argument is out of its range.
    """

    def __init__(
        self,
        table_rows: Sequence[int],
        zipf_exponent: float,
        seed: int,
        days: int = 1,
        drift: float = 0.0,
        profile: StackProfile | None = None,
    ):
        if len(table_rows) != len(CATEGORICALS):
            raise UserError(
                f"table_rows: Criteo's layout has {len(CATEGORICALS)} categorical features, "
                f"expected as many tables, got {len(table_rows)}."
            )
        check_ranges(("days", days, 1, 10_000), ("drift", drift, 0, 1))
        if drift * (days - 1) > 0.9:
            raise UserError(
                "drift times the days after the first must be at most 0.9, so that the first day "
                f"has ids, too; got drift = {drift} with {days} days. Lower one of them."
            )
        self.days, self._drift, self._seed = days, drift, seed
        self._teacher = Teacher(
            table_rows, (1,) * len(CATEGORICALS), len(INTEGERS), zipf_exponent, seed
        )
        self._locals = [
            LocalIds(profile, rows, np.random.default_rng([seed, 3, feature]))
            for feature, rows in enumerate(table_rows)
            if profile is not None
        ]

    def day(self, day: int) -> Iterator[Chunk]:
        """Draws the examples of a day, in chunks of `CHUNK`, without end.

        With a profile, locality continues from the chunks drawn before; otherwise a day's examples
        depend on the arguments only.
        """
        for number in itertools.count():
            yield self._chunk(day, np.random.default_rng([self._seed, 2, day, number]))

    def _chunk(self, day: int, rng: np.random.Generator) -> Chunk:
        dense, ids = self._teacher.draw_features(rng, CHUNK)
        np.minimum(dense, np.log1p(np.float32(LARGEST_INTEGER)), out=dense)
        if self._locals:
            ids = np.stack([local.draw(CHUNK) for local in self._locals], axis=1)
            logits = self._teacher.logits(dense, self._ranks(ids))
        else:
            self._replace_unborn(ids, day)
            logits = self._teacher.logits(dense, ids)
        labels = rng.random(CHUNK, dtype=np.float32) < sigmoid(logits)

        integers = np.rint(np.expm1(dense)).astype(np.int32)
        u = rng.random(integers.shape, dtype=np.float32)
        zero = integers == 0
        integers[zero & (u < _EMPTY_SHARE + _NEGATIVE_SHARE)] = -1
        integers[zero & (u < _EMPTY_SHARE)] = EMPTY
        return Chunk(labels.astype(np.int32), integers, dense, ids, logits)

    def _replace_unborn(self, ids: Int32[np.ndarray, "N 26"], day: int) -> None:
        """Halves ids until they are born, so that the substitute of an id is always the same."""
        unborn_share = self._drift * (self.days - 1 - day)
        if unborn_share == 0:
            return
        birth_of_the_youngest = np.uint32(unborn_share * 2**32)

        def unborn(column: Int32[np.ndarray, " M"]) -> np.ndarray:
            births = mix(column, salt=len(CATEGORICALS) + feature)
            return np.flatnonzero((births < birth_of_the_youngest) & (column > 0))

        for feature in range(len(CATEGORICALS)):
            column = ids[:, feature]
            places = unborn(column)
            while len(places):
                column[places] //= 2
                places = places[unborn(column[places])]

    def _ranks(self, ids: Int32[np.ndarray, "N 26"]) -> Int32[np.ndarray, "N 26"]:
        """The ids as the teacher sees them: an id's rank by Zipf's law.

        Local ids move through the whole table in the course of time, whereas the teacher weighs
        the first ids most. Multiples of the golden ratio, modulo 1, spread every run of ids evenly
        over the ranks, so labels are as predictable at any time as with Zipf's law.
        """
        ranks = np.empty_like(ids)
        turns: UInt32[np.ndarray, "N 26"] = ids.astype(np.uint32) * np.uint32(2654435769)
        for feature, rows in enumerate(self._teacher.table_rows):
            u = turns[:, feature] / 2.0**32
            ranks[:, feature] = zipf_quantile(u, rows, self._teacher.exponent)
        return ranks
