"""Metrics of examples that come in chunks, in bounded memory."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt32

from dlrm_jax.errors import UserError
from dlrm_jax.training.metrics import named_metrics

LARGEST = 1 << 21
_WAITING = 1 << 20  # rows that are counted at a time, in 100 bytes each


class StreamedMetrics:
    """`binary_metrics` of all examples so far.

    The AUC needs the counts of each distinct logit. If these are more than ``largest``, neighbours
    count as one: those that differ in the last of a float32's 24 binary digits first. For most
    data this changes the AUC by less than one part in a million.

    Args:
        largest: number of distinct logits that are kept apart.
        shift: number to add to each logit, as for `binary_metrics`.

    Attributes:
        rows: number of examples so far.
    """

    def __init__(self, largest: int = LARGEST, shift: float = 0.0):
        self._largest, self._added = largest, shift
        self._shift = 0  # binary digits of a logit that don't count
        self._logits = np.zeros(0, np.uint32)  # distinct ones, ascending
        self._counts = np.zeros((2, 0))  # weights of negative and positive examples of each
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._sums = np.zeros(5)  # of loss, label, right ones, probability, and weights
        self.rows = self._rows_waiting = 0

    @property
    def weight(self) -> float:
        """The sum of the weights so far."""
        return float(self._sums[-1])

    def add(
        self,
        logits: Float32[np.ndarray, " N"],
        labels: Shaped[np.ndarray, " N"],
        weights: Float[np.ndarray, " N"] | None = None,
    ) -> None:
        """Adds finite logits, labels of 0 to 1, and weights of 0 or more; None if all are 1."""
        y = labels.astype(np.float64)
        z = logits.astype(np.float64) + self._added
        w = np.ones(len(y)) if weights is None else weights.astype(np.float64)
        losses, right = np.logaddexp(0, z) - y * z, (z > 0) == (y > 0.5)
        each = (losses, y, right, np.exp(-np.logaddexp(0, -z)))
        sums = [x.sum() if weights is None else (w * x).sum() for x in each]
        self._sums += np.array([*sums, w.sum()], np.float64)
        self.rows += len(logits)
        self._waiting.append((_ordered(logits), np.stack([w * (y <= 0.5), w * (y > 0.5)])))
        self._rows_waiting += len(logits)
        if self._rows_waiting >= min(_WAITING, self._largest):
            self._count()

    def metrics(self) -> dict[str, float | int]:
        """The metrics, as of `binary_metrics`; there must be an example.

        Raises:
            UserError: all weights are 0.
        """
        self._count()
        *sums, total = self._sums.tolist()
        if not total:
            raise UserError(f"metrics need an example with a weight, got {self.rows} of weight 0")
        loss, positive, right, probability = (x / total for x in sums)
        return named_metrics(loss, self._auc(), positive, right, probability, self.rows)

    def _count(self) -> None:
        logits = [self._logits, *(x >> self._shift for x, _ in self._waiting)]
        counts = [self._counts, *(x for _, x in self._waiting)]
        self._waiting, self._rows_waiting = [], 0
        self._merge(np.concatenate(logits), np.concatenate(counts, axis=1))
        while len(self._logits) > self._largest:
            self._shift += 1
            self._merge(self._logits >> 1, self._counts)

    def _merge(self, logits: UInt32[np.ndarray, " K"], counts: Shaped[np.ndarray, "2 K"]) -> None:
        order = np.argsort(logits, kind="stable")
        logits = logits[order]
        starts = np.flatnonzero(np.diff(logits, prepend=~logits[:1]))
        self._logits = logits[starts]
        self._counts = np.add.reduceat(counts[:, order], starts, axis=1) if len(starts) else counts

    def _auc(self) -> float:
        negative, positive = self._counts
        pairs = negative.sum() * positive.sum()
        below = np.cumsum(negative) - negative / 2  # ties count half
        return float(np.sum(positive * below) / pairs) if pairs else float("nan")


def _ordered(logits: Float[np.ndarray, " N"]) -> UInt32[np.ndarray, " N"]:
    """Integers in the order of the numbers."""
    bits = (logits.astype(np.float32) + np.float32(0)).view(np.uint32)  # -0 becomes 0
    return np.where(bits >> np.uint32(31), ~bits, bits | np.uint32(1 << 31))
