"""The links of TPUs: chips on a torus, each joined to its neighbors.

Collectives of other devices pass a switch, where only what a device sends and receives counts. On a
torus bytes pass other chips on their way, so the time depends on the axes.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Torus(NamedTuple):
    """Links along the axes of a slice.

    Jax-ml's book "How to Scale Your Model", chapter "How to Think About TPUs", has the lengths of
    rings, and the times of collectives on a ring.

    Attributes:
        axes: number of axes.
        ring: number of chips of which an axis has a multiple if its ends are joined, too.
        of_cubes: whether ends are joined only if all axes have such multiples.
    """

    axes: int
    ring: int
    of_cubes: bool

    def shape(self, chips: int) -> tuple[int, ...]:
        """The chips along each axis of a block of so many: as equal as can be, the last longest.

        Blocks have 2^n chips; others take a part of the next larger one.
        """
        doublings = (chips - 1).bit_length()
        return tuple(1 << (doublings + axis) // self.axes for axis in range(self.axes))

    def directions(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The links that bytes may take along each axis: 2 of a ring, 1 of a line, 0 of a chip."""
        rings = [length % self.ring == 0 for length in shape]
        if self.of_cubes and not all(rings):
            rings = [False] * len(shape)
        return tuple(
            0 if length == 1 else 1 + ring for length, ring in zip(shape, rings, strict=True)
        )

    def exchange(self, devices: int, stride: int = 1) -> float:
        """The seconds of an all-to-all, as a multiple of those of its result over all links.

        A half of the longest axis sends half of its bytes to the other half, over the links in the
        middle: one of a line, two of a ring.

        Args:
            devices: number of chips that take part.
            stride: distance between chips that take part; those between have groups of their own.
        """
        shape = self.shape(devices * stride)
        return self._links * shape[-1] / 4 / max(1, self.directions(shape)[-1])

    def gather(self, devices: int, stride: int = 1) -> float:
        """The seconds of an all-gather, as a multiple of those of what a chip receives.

        A block of chips receives over the links of all axes. Chips at a distance take the longest
        axis, and share its links with the groups of those between.

        Args:
            devices: number of chips that take part.
            stride: distance between chips that take part.
        """
        shape = self.shape(devices * stride)
        directions = self.directions(shape)
        if stride == 1:
            return self._links / max(1, sum(directions))
        return self._links * math.ceil(shape[-1] / devices) / max(1, directions[-1])

    @property
    def _links(self) -> int:
        """The links of a chip, which a data sheet counts together."""
        return 2 * self.axes
