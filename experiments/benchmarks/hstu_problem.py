"""A layer of HSTU with its batch, drawn once for all contestants of `benchmarks.hstu_layer`.

Workers of peers, in whose environment there is no JAX, import it as well.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

TIME_BUCKETS = 128
OCTAVE = 0.301
EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class Case:
    """What is timed.

    Attributes:
        heads: number of heads.
        head_width: width of a head's queries, keys, values and gates.
        length: longest length of a sequence.
        varied: whether lengths are uniform in 50 to 100 % of the longest one, or all equal.
        timed: whether there is a bias by time, besides that by distance.
        train: whether gradients of everything are computed, too.
        tokens: number of tokens, filled up by as many sequences as fit.
    """

    heads: int
    head_width: int
    length: int
    varied: bool
    timed: bool
    train: bool
    tokens: int = 16384

    @property
    def width(self) -> int:
        """Width of the vectors."""
        return self.heads * self.head_width

    def lengths(self) -> np.ndarray:
        """Lengths of the sequences, one at least."""
        rng, found = np.random.default_rng(0), list[int]()
        while True:
            low = -(-self.length // 2) if self.varied else self.length
            found.append(int(rng.integers(low, self.length + 1)))
            if sum(found) > self.tokens:
                return np.array(found[:-1] or [self.length], np.int32)

    def needed_flops(self) -> float:
        """Operations of the products that no formulation goes without, [m, k] x [k, n] as 2 m k n.

        These are the two linear maps, and for each pair of a token and one up to it a score and a
        sum of values. In training each has two more products, but none is computed again.
        """
        lengths = self.lengths().astype(np.float64)
        linear = 2 * lengths.sum() * self.width * 5 * self.width
        attention = 4 * self.width * (lengths * (lengths + 1) / 2).sum()
        return (3 if self.train else 1) * (linear + attention)


def draw(case: Case) -> dict[str, np.ndarray]:
    """Parameters, vectors of the tokens, cotangents of the results, and times, all packed."""
    rng, lengths, width = np.random.default_rng(1), case.lengths(), case.width
    tokens = int(lengths.sum())

    def normal(scale: float, *shape: int) -> np.ndarray:
        return rng.normal(0, scale, shape).astype(np.float32)

    # From seconds to months between two tokens.
    steps = np.exp(rng.uniform(0, 14, tokens)).astype(np.int64)
    times = np.concatenate([np.cumsum(x) for x in np.split(steps, np.cumsum(lengths)[:-1])])
    return {
        "uvqk": normal(width**-0.5, width, 4 * width),
        "output": normal(width**-0.5, width, width),
        "output_bias": normal(0.1, width),
        "by_distance": normal(0.3, case.length),
        **({"by_time": normal(0.3, TIME_BUCKETS + 1)} if case.timed else {}),
        "x": normal(1, tokens, width),
        "cotangent": normal(1, tokens, width),
        "times": np.minimum(times, 2**31 - 1).astype(np.int32),
        "lengths": lengths,
    }


def parameters(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What gradients are computed of: all but the cotangents, times and lengths."""
    return {k: v for k, v in arrays.items() if k not in ("cotangent", "times", "lengths")}


def save(case: Case, directory: Path) -> None:
    """Writes a case and its arrays."""
    (directory / "case.json").write_text(json.dumps(dataclasses.asdict(case)), encoding="utf-8")
    np.savez(directory / "arrays.npz", **draw(case))  # pyright: ignore[reportArgumentType]


def read(directory: Path) -> tuple[Case, dict[str, np.ndarray]]:
    """What `save` has written."""
    values: dict[str, Any] = json.loads((directory / "case.json").read_text(encoding="utf-8"))
    with np.load(directory / "arrays.npz") as arrays:
        return Case(**values), dict(arrays)


def distances(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]
) -> Iterator[tuple[str, float]]:
    """The largest difference of each array, as a share of its largest number."""
    for name, own in ours.items():
        yield name, float(np.abs(own - theirs[name]).max() / np.abs(own).max())
