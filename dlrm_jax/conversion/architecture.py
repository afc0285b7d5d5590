"""A DLRM or DLRM-DCNv2 by its widths, as the shapes of its arrays tell them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from dlrm_jax.conversion.tensor_names import Layers
from dlrm_jax.errors import UserError
from dlrm_jax.models.interaction import interaction_width

Interaction = Literal["dot", "cat", "cross"]


class Kind(NamedTuple):
    """An interaction without cross layers.

    Attributes:
        interaction: ``"dot"`` or ``"cat"``.
        alike: whether pairs are of a vector with itself, too.
    """

    interaction: Literal["dot", "cat"]
    alike: bool

    def __str__(self) -> str:
        """As settings say it."""
        return f"{self.interaction} with self_interaction" if self.alike else self.interaction


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model.

    Attributes:
        tables: number of tables, which is that of categorical features.
        embedding_dim: width of their rows.
        dense_features: number of dense features.
        bottom_mlp: widths of the layers below the interaction.
        top_mlp: widths of the layers above it.
        interaction: kind of interaction: dot products of pairs, all vectors side by side, or these
            and cross layers, which make it DLRM-DCNv2.
        self_interaction: whether pairs are with themselves, too.
        layers: number of cross layers.
        rank: rank of their matrices.
    """

    tables: int
    embedding_dim: int
    dense_features: int
    bottom_mlp: tuple[int, ...]
    top_mlp: tuple[int, ...]
    interaction: Interaction
    self_interaction: bool = False
    layers: int = 0
    rank: int = 0

    @property
    def counts(self) -> Layers:
        """The numbers of layers."""
        return Layers(len(self.bottom_mlp), len(self.top_mlp), self.layers)

    def settings(self) -> dict[str, Any]:
        """The fields of a config of such a model, but those of its tables."""
        found: dict[str, Any] = {
            "embedding_dim": self.embedding_dim,
            "dense_features": self.dense_features,
            "bottom_mlp": self.bottom_mlp,
            "top_mlp": self.top_mlp,
        }
        if self.interaction == "cross":
            options = (f"layers={self.layers}", f"rank={self.rank}")
            return found | {"model": "dcn_v2", "model_options": options}
        own = {"interaction": self.interaction, "self_interaction": self.self_interaction}
        return found | {"model": "dlrm"} | own


DIFFERENT, ALIKE, BESIDE = Kind("dot", False), Kind("dot", True), Kind("cat", False)
"""Dot products of different pairs, of all pairs, and no products: vectors side by side."""


def architecture_of(
    what: str,
    layers: Mapping[str, Sequence[int]],
    tables: Sequence[Sequence[int]],
    kinds: Sequence[Kind],
) -> tuple[Architecture, list[Kind]]:
    """The model that arrays are of; whether each has the shape that follows is for the caller.

    Args:
        what: name of the arrays' file, for messages.
        layers: shapes by the names that arrays have here.
        tables: shapes of the tables.
        kinds: interactions that it may have, those first that count where the widths fit several.

    Returns:
        The model, and the interactions that fit it; none if it has cross layers.

    Raises:
        UserError: the widths fit no interaction.
    """
    counts = Layers.of(layers, "here")
    for name in counts.here():
        expected = 1 if name.endswith("bias") else 2
        if len(layers[name]) != expected:
            raise UserError(
                f"{what}: expected {expected} axes for {name}, got shape {tuple(layers[name])}"
            )
    bottom = tuple(layers[f"bottom.layers.{i}.kernel"][1] for i in range(counts.bottom))
    top = tuple(layers[f"top.layers.{i}.kernel"][1] for i in range(counts.top))
    dense, width = layers["bottom.layers.0.kernel"][0], layers["top.layers.0.kernel"][0]
    dim = tables[0][1]
    found = Architecture(len(tables), dim, dense, bottom, top, "cross", layers=counts.cross)
    if counts.cross:
        return dataclasses.replace(found, rank=layers["cross.0.factors.0"][1]), []
    widths = {
        kind: interaction_width(kind.interaction, bottom[-1], [dim] * len(tables), kind.alike)
        for kind in (DIFFERENT, ALIKE, BESIDE)
        if kind == BESIDE or bottom[-1] == dim
    }
    fitting = [kind for kind in dict.fromkeys(kinds) if widths.get(kind) == width]
    if not fitting:
        hint = ""
        if widths.get(ALIKE) == width:  # as many as a table more gives with different pairs
            hint = (
                ", unless products of vectors with themselves are meant: --config with "
                '{"self_interaction": true}'
            )
        expected = [f"{widths[kind]} ({kind})" for kind in kinds if kind in widths]
        raise UserError(
            f"{what}: the top MLP reads {width} numbers, but {len(tables)} tables of width {dim} "
            f"and a bottom MLP that ends in {bottom[-1]} give "
            f"{' or '.join(expected) or 'no interaction'}: a table or a layer is missing{hint}"
        )
    kind = fitting[0]
    made = dataclasses.replace(found, interaction=kind.interaction, self_interaction=kind.alike)
    return made, fitting
