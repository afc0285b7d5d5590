"""Effects of the ids of a feature on a generated label."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, Integer

from dlrm_jax.data.generated.zipf import cumulative_zipf

RANK = 2
"""Width of the factors of ids in products."""

# Ids from _HEAD on share the effects of a few classes. The teacher's memory is thereby bounded,
# and ids that are too rare to be learnt differ little.
_HEAD = 4096
_TAIL_CLASSES = 64
_HALF_RANK = 20.0


@dataclass(frozen=True)
class Effects:
    """The effects of one feature's ids.

    Attributes:
        main: additive effect of the first `_HEAD` ids, then of each class of later ids.
        vectors: factors of these ids in products with other features; None for a feature in no
            product.
    """

    main: Float32[np.ndarray, " E"]
    vectors: Float32[np.ndarray, "E K"] | None

    @classmethod
    def draw(
        cls, rng: np.random.Generator, rows: int, exponent: float, interacts: bool
    ) -> "Effects":
        """Draws the effects of the ids from 0 to ``rows`` - 1, whose Zipf exponent is given."""
        head = min(rows, _HEAD)
        probabilities = np.diff(cumulative_zipf(np.arange(head + 1), rows, exponent))
        ranks = np.arange(head, dtype=np.float64)
        if rows > head:
            tail = max(0.0, 1.0 - probabilities.sum()) / _TAIL_CLASSES
            probabilities = np.append(probabilities, np.full(_TAIL_CLASSES, tail))
            ranks = np.append(ranks, np.full(_TAIL_CLASSES, head))
        # Rare ids have small effects, for they can't be learnt from few examples.
        values = rng.standard_normal((len(ranks), 1 + RANK)) / (1 + ranks[:, None] / _HALF_RANK)
        # Centred factors make a product orthogonal to every function of one feature.
        values -= probabilities @ values / probabilities.sum()
        deviations = np.sqrt(probabilities @ values**2)
        values /= np.where(deviations > 0, deviations, 1)
        values = values.astype(np.float32)
        # Large tables matter less as a whole, too.
        main = values[:, 0] * np.float32(min(1.0, (_HALF_RANK / rows) ** 0.25))
        return cls(main, np.ascontiguousarray(values[:, 1:]) if interacts else None)

    def index(self, ids: Int32[np.ndarray, "..."]) -> Integer[np.ndarray, "..."]:
        """The index of each id's effects; absent ids give any index."""
        if len(self.main) <= _HEAD:
            return np.maximum(ids, 0)
        mixed = (ids.astype(np.uint32) * np.uint32(2654435761)) >> np.uint32(16)
        return np.where(ids < _HEAD, np.maximum(ids, 0), _HEAD + mixed % np.uint32(_TAIL_CLASSES))
