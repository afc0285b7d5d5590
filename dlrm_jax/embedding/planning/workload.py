"""What a step asks of the tables, as far as a plan depends on it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from dlrm_jax.embedding.table import Feature, Lookup, Table
from dlrm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Workload:
    """Decides how good a plan is, never whether it is right.

    Attributes:
        batch_size: of one step, over all devices.
        data_groups: copies of the tables: the size of the mesh's data axis.
        zipf_exponent: of the ids of every table; 0 for uniform ones.
        bags: by table, the ids of each bag that a sample reads from it. A table that isn't
            named is read by one bag of one id.
    """

    batch_size: int = 65_536
    data_groups: int = 1
    zipf_exponent: float = 1.05
    bags: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.batch_size < 1 or self.data_groups < 1:
            raise UserError(
                f"workload: batch_size and data_groups must be at least 1, got {self.batch_size} "
                f"and {self.data_groups}"
            )
        if not 0 <= self.zipf_exponent < float("inf"):
            raise UserError(f"workload: expected a Zipf exponent from 0, got {self.zipf_exponent}")
        for table, lengths in self.bags.items():
            if not isinstance(lengths, Sequence) or not lengths or min(lengths) < 1:
                raise UserError(
                    f"workload: expected the ids of each bag of table {table}, numbers from 1 such "
                    f"as (1, 3), got {lengths!r}"
                )

    def lengths(self, table: str) -> dict[int, int]:
        """How many bags of each length a sample reads from a table."""
        return dict(sorted(Counter(self.bags.get(table, (1,))).items()))

    def ids(self, table: str) -> int:
        """How many ids a sample has for a table."""
        return sum(self.bags.get(table, (1,)))

    def distinct_rows(self, table: Table, samples: float) -> float:
        """How many rows of a table so many samples are expected to read."""
        return distinct_rows(table.rows, self.zipf_exponent, samples * self.ids(table.name))


def bags_of(features: Sequence[Feature], lookups: Sequence[Lookup]) -> dict[str, list[int]]:
    """The bags of `Workload`, of these lookups. A sequence is as many bags of one id."""
    length = {feature.name: feature.max_ids for feature in features}
    bags: dict[str, list[int]] = {}
    for lookup in lookups:
        ids = length[lookup.feature]
        bags.setdefault(lookup.table, []).extend([1] * ids if lookup.pooling == "none" else [ids])
    return bags


# Ranks up to here are counted one by one, those beyond in spans whose ends differ by a 256th.
_EXACT = 2048
_SPANS = 256


def distinct_rows(rows: int, exponent: float, draws: float) -> float:
    """The expected number of distinct ids among so many that Zipf's law draws.

    That is Σ 1 - (1 - p_r)^draws with p_r ∝ r^-exponent. Far from the first ranks p changes
    little from one to the next, so that a span of ranks is one term: any table takes a few
    thousand.

    Args:
        rows: ids that there are.
        exponent: 0 for uniform ids.
        draws: ids drawn.
    """
    first = np.arange(1, min(rows, _EXACT) + 1, dtype=np.float64)
    ends = first + 0.5
    if rows > _EXACT:
        spans = int(np.ceil(np.log(rows / _EXACT) * _SPANS)) + 1
        ends = np.append(ends, np.geomspace(ends[-1], rows + 0.5, spans)[1:])
    starts = np.append(0.5, ends[:-1])
    weights = np.sqrt(starts * ends) ** -exponent
    weights[: len(first)] = first**-exponent
    counts = ends - starts
    p = weights / np.sum(weights * counts)
    with np.errstate(divide="ignore"):  # the only id there is has p = 1
        return float(np.sum(counts * -np.expm1(draws * np.log1p(-np.minimum(p, 1)))))
