"""The sizes of each model: a ladder of width and depth together, and one thing at a time."""

from __future__ import annotations

import dataclasses

from experiments.scaling.planted_products import ROWS


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a model.

    Attributes:
        width: width of the vectors of ids; the other widths are multiples of it.
        layers: number of layers.
        rows: rows of each table of a ranking model; ids are taken modulo it. 0 for sequences.
        length: longest history of a model of sequences. 0 for ranking models.
    """

    width: int
    layers: int
    rows: int = 0
    length: int = 0


LADDER = "width and depth"
"""The axis along which both grow together."""

_LADDERS: dict[str, tuple[tuple[int, int], ...]] = {
    "dlrm": ((4, 1), (8, 1), (16, 2), (32, 2), (48, 3)),
    "wukong": ((4, 1), (8, 1), (8, 2), (16, 2), (16, 3)),
    "rankmixer": ((4, 1), (8, 1), (8, 2), (16, 2), (24, 2)),
    "hstu": ((4, 1), (8, 1), (16, 2), (32, 2), (64, 2)),
}
"""Width and layers of each rung, from the least operations to the most."""

MODELS = tuple(_LADDERS)
"""The models; HSTU is the one of sequences."""

_MIDDLE = 2  # rung from which one thing at a time varies
_ROWS, _LENGTHS = (ROWS // 4, ROWS // 2, ROWS), (4, 8, 16, 32)


def is_of_sequences(model: str) -> bool:
    """Whether a model reads histories."""
    return model == "hstu"


def sizes_of(model: str) -> dict[str, list[Size]]:
    """The sizes along each axis, the smallest first.

    Args:
        model: name of the model.
    """
    sequences = is_of_sequences(model)
    of_data = {"length": _LENGTHS[-1]} if sequences else {"rows": ROWS}
    ladder = [Size(width, layers, **of_data) for width, layers in _LADDERS[model]]
    middle = ladder[_MIDDLE]

    def vary(name: str, values: tuple[int, ...]) -> list[Size]:
        return [dataclasses.replace(middle, **{name: value}) for value in values]

    of_input = vary("length", _LENGTHS) if sequences else vary("rows", _ROWS)
    return {
        LADDER: ladder,
        "width": vary("width", (middle.width, 2 * middle.width)),
        "layers": vary("layers", (middle.layers, 2 * middle.layers)),
        "length" if sequences else "rows": of_input,
    }


def middle_of(model: str) -> Size:
    """The size in the middle of the ladder."""
    return sizes_of(model)[LADDER][_MIDDLE]
