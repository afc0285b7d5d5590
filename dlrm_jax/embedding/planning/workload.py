"""The reads of the tables in a step that a plan depends on."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from dlrm_jax.embedding.table import Feature, Lookup, Table
from dlrm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Workload:
    """The reads of a step. They decide the speed of a plan, never its results.

    Attributes:
        batch_size: samples of one step, over all devices.
        data_groups: number of copies of the tables: the size of the mesh's data axis.
        zipf_exponent: Zipf exponent of the ids of every table; 0 for uniform ones.
        bags: number of ids of each bag that a sample reads, by table name. A table without an
            entry is read by one bag of one id.
        micro_batches: number of equal parts of the batch that are looked up one after the other,
            before one update of all.
        all_rows: whether an update changes all rows of the tables that are trained, read or not:
            those of a penalty with ``whole_tables``, see `add_l2`.
        fused: whether kernels of accelerators, if they have them, update rows without sums of their
            gradients: neither with ``kernels="jax"`` nor where a step clips or adds a penalty.
    """

    batch_size: int = 65_536
    data_groups: int = 1
    zipf_exponent: float = 1.05
    bags: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    micro_batches: int = 1
    all_rows: bool = False
    fused: bool = True

    def __post_init__(self):
        if self.batch_size < 1 or self.data_groups < 1:
            raise UserError(
                f"workload: batch_size and data_groups must be at least 1, got {self.batch_size} "
                f"and {self.data_groups}"
            )
        if self.micro_batches < 1 or self.batch_size % self.micro_batches:
            raise UserError(
                f"workload: expected a number of micro_batches that divides batch_size "
                f"{self.batch_size}, got {self.micro_batches}"
            )
        if not 0 <= self.zipf_exponent < float("inf"):
            raise UserError(f"workload: expected a Zipf exponent from 0, got {self.zipf_exponent}")
        for table, lengths in self.bags.items():
            if not isinstance(lengths, Sequence) or not lengths or min(lengths) < 1:
                raise UserError(
                    f"workload: expected the ids of each bag of table {table}, numbers from 1 such "
                    f"as (1, 3), got {lengths!r}"
                )

    @functools.cached_property
    def ids_of_all(self) -> int:
        """The number of ids in all of ``bags``."""
        return sum(map(sum, self.bags.values()))

    def lengths(self, table: str) -> dict[int, int]:
        """The number of bags of each length that a sample reads from a table."""
        return dict(sorted(Counter(self.bags.get(table, (1,))).items()))

    def ids(self, table: str) -> int:
        """The number of ids that a sample has for a table."""
        return sum(self.bags.get(table, (1,)))

    def distinct_rows(self, table: Table, samples: float) -> float:
        """The expected number of distinct rows of a table that so many samples read."""
        return distinct_rows(table.rows, self.zipf_exponent, samples * self.ids(table.name))

    def rows_read(self, table: Table, samples: float) -> float:
        """The expected number of rows that lookups of so many of the batch's samples read.

        A row is read once in each micro-batch that has it.
        """
        count = self.micro_batches
        return count * self.distinct_rows(table, samples / count)

    def distinct_share(self, table: Table, shards: int) -> float:
        """The expected share of the ids of a device's samples that name different rows.

        The samples are those of one micro-batch.

        Args:
            table: table of the ids.
            shards: number of shards of a data-parallel group; 1 for the share of a whole group's.
        """
        samples = self.batch_size / (self.micro_batches * self.data_groups * shards)
        share = self.distinct_rows(table, samples) / (samples * self.ids(table.name))
        return float(f"{min(share, 1.0):.3g}")


def bags_of(features: Sequence[Feature], lookups: Sequence[Lookup]) -> dict[str, list[int]]:
    """The argument ``bags`` of `Workload` for lookups; a sequence of L ids is L bags of one id."""
    length = {feature.name: feature.max_ids for feature in features}
    bags: dict[str, list[int]] = {}
    for lookup in lookups:
        ids = length[lookup.feature]
        bags.setdefault(lookup.table, []).extend([1] * ids if lookup.pooling == "none" else [ids])
    return bags


# The first 2048 ranks are counted one by one, the others in spans whose ends differ by a 256th.
_EXACT = 2048
_SPANS = 256


@functools.lru_cache(maxsize=2**16)
def distinct_rows(rows: int, exponent: float, draws: float) -> float:
    """The expected number of distinct ids in a number of draws by Zipf's law.

    It is Σ 1 - (1 - p_r)^draws with p_r ∝ r^-exponent. Far from the first ranks p changes little
    from one rank to the next, so a span of ranks is one term. Any table takes a few thousand terms.

    Args:
        rows: number of ids there are.
        exponent: Zipf exponent; 0 for uniform ids.
        draws: number of ids drawn.
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
