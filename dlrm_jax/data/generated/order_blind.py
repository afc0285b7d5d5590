"""The best prediction of a sequential teacher's labels by who doesn't know the order."""

import numpy as np
from jaxtyping import Float32, Int32

from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.data.generated.succession import HORIZON
from dlrm_jax.data.generated.teacher import Teacher, sigmoid

_ORDERS = 256


def order_blind_logits(
    teacher: Teacher, dense: Float32[np.ndarray, "N D"], ids: Int32[np.ndarray, "N C"]
) -> Float32[np.ndarray, " N"]:
    """The log odds of label 1, given all features but the order of the history.

    The ids of a history are drawn independently of each other, so each order of them is as likely
    as any other: the probability is the mean over orders, of which 256 random ones are taken. No
    model that pools its histories has a lower expected log loss.

    Args:
        teacher: teacher whose kind is ``"sequential"``.
        dense: dense features.
        ids: ids of all features.
    """
    affinities = teacher.affinities(ids)
    scale = teacher.scales[0]
    without = teacher.logits(dense, ids) - scale * teacher.succession.of_order(affinities)
    rng = np.random.default_rng(0)
    rows = np.arange(len(ids))
    lengths = (teacher.histories(ids) != ABSENT).sum(axis=1)
    total = np.zeros(len(ids))
    for _ in range(_ORDERS):
        # The first places of another random order each time, as Fisher and Yates shuffle.
        for place in range(min(HORIZON, affinities.shape[1])):
            left = np.maximum(lengths - place, 1)
            other = place + (rng.random(len(ids)) * left).astype(np.int64)
            mine = affinities[:, place].copy()
            affinities[:, place] = affinities[rows, other]
            affinities[rows, other] = mine
        total += sigmoid(without + scale * teacher.succession.of_order(affinities))
    probability = total / _ORDERS
    return np.log(probability / (1 - probability)).astype(np.float32)
