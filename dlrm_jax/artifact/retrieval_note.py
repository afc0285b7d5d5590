"""What the manifest of two towers says besides that of a click model: the index of the items."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dlrm_jax.artifact.notes import Count, Positive
from dlrm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class AttributeNote:
    """An attribute of the items, by which they can be filtered.

    Attributes:
        name: name, as in the log.
        columns: first of its columns in the items' ids, and the one after the last.
        file: file of its values by id.
    """

    name: str
    columns: tuple[Count, Count]
    file: str


@dataclasses.dataclass(frozen=True)
class RetrievalNote:
    """Two towers: the program gives the vectors of users, and an index has those of the items.

    Attributes:
        dense: names of the dense features of the user.
        item: name of the column that tells items apart.
        items: number of items.
        dim: numbers of a vector.
        cells: number of cells; 1 for a flat index.
        probes: cells that a query reads unless it says another number.
        bloom_bits: bits of an item's Bloom filter; 0 without attributes.
        attributes: attributes of the items.
    """

    dense: tuple[str, ...]
    item: str
    items: Positive
    dim: Positive
    cells: Positive
    probes: Positive
    bloom_bits: Count
    attributes: tuple[AttributeNote, ...]


def check_click_model(directory: Path, note: RetrievalNote | None) -> None:
    """Checks that an artifact predicts rows.

    Args:
        directory: directory of the artifact.
        note: note of its manifest.

    Raises:
        UserError: it is one of two towers.
    """
    if note:
        raise UserError(
            f"expected the artifact of a click model, but {directory} is one of two towers, which "
            f"find items; load it by dlrm_jax.retrieval.retriever.Retriever"
        )
