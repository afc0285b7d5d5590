"""The parts of a manifest: its features, tables, lookups, layers, programs and files."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import msgspec

from dlrm_jax.artifact.row_formats import RowFormat
from dlrm_jax.embedding import id_maps

_MOST = 2**31 - 1  # ids and places in memory are int32

Count = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=_MOST)]
LongCount = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""Bytes, and rows of a log."""


@dataclasses.dataclass(frozen=True)
class FileNote:
    """A file of the artifact.

    Attributes:
        bytes: size.
        xxh3_128: checksum of its bytes, in hexadecimal digits.
    """

    bytes: LongCount
    xxh3_128: str


@dataclasses.dataclass(frozen=True)
class FeatureNote:
    """A categorical feature.

    Attributes:
        name: name, as in the log.
        rows: number of its ids, which are 0 to rows - 1.
        max_ids: number of its columns in the array of ids.
    """

    name: str
    rows: Positive
    max_ids: Positive


@dataclasses.dataclass(frozen=True)
class TableNote:
    """A table.

    Attributes:
        name: name, as in checkpoints.
        rows: number of rows.
        dim: numbers of a row.
        row_format: row format.
        file: file of its rows, one after the other without padding.
    """

    name: str
    rows: Positive
    dim: Positive
    row_format: RowFormat
    file: str


@dataclasses.dataclass(frozen=True)
class LookupNote:
    """A read of a table by a feature.

    Attributes:
        name: name of its vectors, which the program is given side by side in this order.
        feature: name of the feature.
        table: name of the table.
        pooling: kind of pooling of a bag, see `dlrm_jax.embedding.Lookup`.
        columns: first column of the feature in the array of ids, and the one after the last.
        id_map: name and number of the map of the ids, such as ``{"floor_divide": 4}``.
    """

    name: str
    feature: str
    table: str
    pooling: Literal["sum", "mean", "none"]
    columns: tuple[Count, Count]
    id_map: dict[id_maps.Name, Positive] = dataclasses.field(default_factory=dict)

    def rows_read(self, ids: int) -> int:
        """The number of rows that so many ids read, from the first one on."""
        if divisor := self.id_map.get("floor_divide"):
            return -(-ids // divisor)
        return min(ids, self.id_map.get("remainder", ids))


@dataclasses.dataclass(frozen=True)
class LayerNote:
    """An array of the dense model: a parameter, or a statistic.

    Attributes:
        name: name, as warm starts read it.
        shape: shape.
        dtype: type of the numbers.
        file: file of the array; that of bfloat16 has its bits as uint16.
    """

    name: str
    shape: tuple[Count, ...]
    dtype: str
    file: str


@dataclasses.dataclass(frozen=True)
class ProgramNote:
    """A program: (layers, dense features, vectors) -> logits.

    Attributes:
        batch_size: number of examples; None for any.
        file: StableHLO as `jax.export` serializes it.
    """

    batch_size: Positive | None
    file: str


@dataclasses.dataclass(frozen=True)
class BaselineNote:
    """A split that the model predicted when it was exported, to compare what is served with.

    Attributes:
        split: name of the split.
        edges: upper edges of the bins of probabilities, ascending; one more bin is above.
        scores: number of rows in each bin, by label.
        unseen: share of the values that training hadn't, or too rarely, by column.
    """

    split: str
    edges: tuple[float, ...]
    scores: dict[str, tuple[LongCount, ...]]
    unseen: dict[str, float]
