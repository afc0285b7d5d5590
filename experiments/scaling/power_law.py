"""Power laws through points, y = a x^-b + c."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares

_SIZES_FOR_A_FLOOR = 4  # with fewer points than this c can't be told from b


class PowerLaw(NamedTuple):
    """y = scale · x^-exponent + floor.

    Attributes:
        scale: a, positive.
        exponent: b.
        floor: c, from 0.
    """

    scale: float
    exponent: float
    floor: float

    def __call__(self, x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """The law's values."""
        return self.scale * x**-self.exponent + self.floor


def line(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> PowerLaw:
    """The law without a floor that fits best, a line through the logarithms.

    Args:
        x: positive numbers, of at least two values.
        y: positive numbers.
    """
    slope, at_one = np.polyfit(np.log(x), np.log(y), 1)
    return PowerLaw(float(np.exp(at_one)), float(-slope), 0.0)


def fit(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> PowerLaw:
    """The law with the least squares of log y; without a floor for fewer than four values of x.

    Args:
        x: positive numbers, of at least two values.
        y: positive numbers.
    """
    start = line(x, y)
    if len(np.unique(x)) < _SIZES_FOR_A_FLOOR:
        return start
    middle = np.exp(np.log(x).mean())  # about which scale and exponent are nearly independent

    def law(parameters: np.ndarray) -> PowerLaw:
        at_middle, exponent, floor = parameters
        return PowerLaw(float(np.exp(at_middle) * middle**exponent), exponent, floor)

    def residuals(parameters: np.ndarray) -> np.ndarray:
        return np.log(law(parameters)(x)) - np.log(y)

    bounds = [-np.inf, 0.0, 0.0], [np.inf, np.inf, float(y.min())]
    found = []
    for share in (0.0, 0.5, 0.9):  # from several floors: there may be several minima
        floor = share * y.min()
        begun = line(x, y - 0.999 * floor)
        at_middle = np.log(begun.scale) - begun.exponent * np.log(middle)
        given = [at_middle, max(begun.exponent, 1e-3), floor]
        found.append(least_squares(residuals, given, bounds=bounds, x_scale=[1.0, 1.0, y.min()]))
    best = law(min(found, key=lambda each: each.cost).x)
    return PowerLaw(best.scale, float(best.exponent), float(best.floor))
