"""A DLRM or DLRM-DCNv2 by its widths, as the shapes of its arrays tell them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dlrm_jax.conversion.tensor_names import Layers
from dlrm_jax.errors import UserError
from dlrm_jax.models.interaction import interaction_width

Interaction = Literal["dot", "cat", "cross"]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model.

    Attributes:
        tables: number of tables, which is that of categorical features.
        embedding_dim: width of their rows.
        dense_features: number of dense features.
        bottom_mlp: widths of the layers below the interaction.
        top_mlp: widths of the layers above it.
        interaction: kind of what is between them: dot products of pairs, all vectors side by side, or
            these and cross layers, which make it DLRM-DCNv2.
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


def architecture_of(
    what: str,
    layers: Mapping[str, Sequence[int]],
    tables: Sequence[Sequence[int]],
    asked: tuple[str, bool] = ("dot", False),
) -> Architecture:
    """The model that arrays are of; whether each has the shape that follows is for the caller.

    Args:
        what: name of the arrays' file, for messages.
        layers: shapes by the names that arrays have here.
        tables: shapes of the tables.
        asked: interaction, and self-interaction, that count where the widths fit several.

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
    crossed = Architecture(len(tables), dim, dense, bottom, top, "cross", layers=counts.cross)
    if counts.cross:
        rank = layers["cross.0.factors.0"][1]
        return dataclasses.replace(crossed, rank=rank)
    kinds: list[tuple[Literal["dot", "cat"], bool]] = [
        ("dot", False), ("dot", True), ("cat", False)
    ]  # fmt: skip
    widths = {
        kind: interaction_width(kind[0], bottom[-1], [dim] * len(tables), kind[1])
        for kind in kinds
        if kind[0] == "cat" or bottom[-1] == dim
    }
    fitting = [kind for kind, each in widths.items() if each == width]
    if not fitting:
        raise UserError(
            f"{what}: the top MLP reads {width} numbers, but {len(tables)} tables of width {dim} "
            f"and a bottom MLP that ends in {bottom[-1]} give "
            + ", ".join(f"{each} ({_name(kind)})" for kind, each in widths.items())
            + "; is a table or a layer missing?"
        )
    interaction, alike = next((kind for kind in fitting if kind == asked), fitting[0])
    return dataclasses.replace(crossed, interaction=interaction, self_interaction=alike)


def _name(kind: tuple[str, bool]) -> str:
    return f"{kind[0]} with self_interaction" if kind[1] else kind[0]
