"""What the order of a history says of the candidate that follows it."""

import numpy as np
from jaxtyping import Float32, Int32

from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.data.generated.effects import Effects

HORIZON = 4
"""Number of the latest ids of a history that count."""

_DECAY = 0.5


class Succession:
    """Σⱼ γʲ ⟨u(hⱼ), w(c)⟩ over the latest ids hⱼ of a history, of a candidate c, with γ = 1/2.

    h₀ is the latest id. Ids from the `HORIZON`-th on count nothing. The factors u and w are those
    of `Effects`, so that the sum is orthogonal to every function of the candidate alone.

    Args:
        rng: generator of the factors.
        rows: number of ids of the history and the candidate.
        exponent: exponent s of their Zipf's law.
    """

    def __init__(self, rng: np.random.Generator, rows: int, exponent: float):
        self._before = Effects.draw(rng, rows, exponent, interacts=True)
        self._after = Effects.draw(rng, rows, exponent, interacts=True)

    def affinities(
        self, history: Int32[np.ndarray, "N L"], candidates: Int32[np.ndarray, " N"]
    ) -> Float32[np.ndarray, "N L"]:
        """⟨u(hⱼ), w(c)⟩ of all places of a history, 0 for absent ids."""
        before, after = self._before.vectors, self._after.vectors
        assert before is not None
        assert after is not None
        u = before.take(self._before.index(history), axis=0)
        w = after.take(self._after.index(candidates), axis=0)
        return np.where(history != ABSENT, np.einsum("nlk,nk->nl", u, w), np.float32(0))

    def of_order(self, affinities: Float32[np.ndarray, "N L"]) -> Float32[np.ndarray, " N"]:
        """The sum of affinities whose latest is the first."""
        latest = affinities[:, :HORIZON]
        return latest @ np.float32(_DECAY) ** np.arange(latest.shape[1], dtype=np.float32)
