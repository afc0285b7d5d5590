"""Which tokens of a history are read: the latest ones, and a sample of those before them."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from dlrm_jax.requests.requests import Requests

_SAMPLES = 0x68697374
"""First part of the seeds of samples, which sets them apart from those of the order."""


def tokens_of(
    requests: Requests,
    request: int,
    max_length: int,
    sampled: int = 0,
    seed: int = 0,
    epoch: int = 0,
) -> Int64[np.ndarray, " t"]:
    """The places of the tokens that are read of a request's history, in their order.

    A history longer than ``max_length`` gives its latest ``max_length - sampled`` tokens, and a
    uniform sample of the older ones. The sample depends on the seed, the epoch and the request
    alone.

    Args:
        requests: requests.
        request: number of the request.
        max_length: greatest number of tokens.
        sampled: number of them that is a sample, less than ``max_length``.
        seed: seed of the run.
        epoch: number of the epoch.
    """
    first, end = (int(x) for x in requests.history_offsets[request : request + 2])
    if end - first <= max_length:
        return np.arange(first, end)
    latest = np.arange(end - max_length + sampled, end)
    if not sampled:
        return latest
    rng = np.random.default_rng([_SAMPLES, seed, epoch, request])
    older = rng.choice(latest[0] - first, sampled, replace=False, shuffle=False)
    return np.concatenate([first + np.sort(older), latest])
