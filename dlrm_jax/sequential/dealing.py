"""Sequences dealt to batches and devices, so that all have nearly as many tokens."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64


def deal_batches(
    lengths: Int64[np.ndarray, " U"], batch_size: int, seed: int, epoch: int
) -> Int64[np.ndarray, "n B"]:
    """The sequences of each batch of an epoch, those of a batch from the longest to the shortest.

    Sequences are ordered by length, at random among equal ones, and cut into layers of one for each
    batch; a layer is dealt out at random. So the sums of lengths of two batches differ by no more
    than the longest length and the shortest one do. Up to B - 1 sequences are left out, others in
    each epoch. The result depends on the arguments alone, and not on the mesh.

    Args:
        lengths: length of each sequence, [U].
        batch_size: sequences of a batch, B, at most U.
        seed: seed of the run.
        epoch: number of the epoch.

    Returns:
        Numbers of sequences by batch, [⌊U / B⌋, B].
    """
    rng = np.random.default_rng([seed, epoch])
    batches = len(lengths) // batch_size
    chosen = rng.permutation(len(lengths))[: batches * batch_size]
    chosen = chosen[np.argsort(-lengths[chosen], kind="stable")]
    return rng.permuted(chosen.reshape(batch_size, batches), axis=1).T


def deal_devices(count: int, devices: int) -> Int64[np.ndarray, "D b"]:
    """The places in a batch of the sequences of each device: in turn, there and back again.

    Those of a batch come from the longest to the shortest, so that sums of lengths of two devices
    differ by no more than the longest length and the shortest one do.

    Args:
        count: sequences of a batch, a multiple of the devices.
        devices: number of devices, D.
    """
    layers = np.arange(count).reshape(-1, devices)
    layers[1::2] = layers[1::2, ::-1]
    return layers.T


def tokens_for(
    lengths: Int64[np.ndarray, " U"], batch_size: int, devices: int, multiple: int
) -> int:
    """The number of tokens that a device has room for: enough for each batch of `deal_batches`.

    Args:
        lengths: length of each sequence, [U].
        batch_size: sequences of a batch, B.
        devices: number of devices, D.
        multiple: number that the result is a multiple of.
    """
    # The sums of batches lie around their mean, which is highest if the shortest are left out; and
    # those of devices around that of their batch.
    batches = len(lengths) // batch_size
    longest = np.sort(lengths)[::-1][: batches * batch_size]
    spread = int(longest[0] - lengths.min())
    of_batch = -(-int(longest.sum()) // batches) + spread
    return -(-(-(-of_batch // devices) + spread) // multiple) * multiple
