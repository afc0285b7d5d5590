"""Batches of packed requests: for training by the step, for evaluation in order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from dlrm_jax.requests.histories import tokens_of
from dlrm_jax.requests.packing import (
    RequestBatch,
    Shapes,
    costs,
    first_time,
    pack,
    shapes_for,
    shapes_for_evaluation,
)
from dlrm_jax.requests.requests import Requests
from dlrm_jax.requests.settings import RequestSettings
from dlrm_jax.sequential.dealing import deal_batches, deal_devices
from dlrm_jax.sequential.packing import rows_of_process


class RequestTraining:
    """The endless sequence of training batches, indexed by the step, from 0.

    Batches have nearly as many tokens, and so have devices. Which requests are in a batch and which
    tokens of their histories doesn't depend on the mesh. Requests without candidates are left out:
    they teach nothing, and a batch of them has no loss.

    Args:
        requests: requests.
        train: numbers of those that are trained on.
        settings: settings of the run.
        devices: number of devices, which divides the batch size.

    Raises:
        UserError: fewer requests have candidates than a batch has, or times are too far apart.
    """

    def __init__(
        self,
        requests: Requests,
        train: Int64[np.ndarray, " a"],
        settings: RequestSettings,
        devices: int,
    ):
        train = train[requests.counts[train] > 0]
        self._requests, self._train, self._settings = requests, train, settings
        lengths = np.minimum(requests.lengths[train], settings.max_length)
        counts, one_by_one = requests.counts[train], settings.one_by_one
        self.batch_size = settings.batch_size
        self.shapes = shapes_for(lengths, counts, self.batch_size, devices, one_by_one)
        self.steps_per_epoch = len(train) // self.batch_size
        self._costs = costs(lengths, counts, one_by_one)
        self._dealt = deal_devices(self.batch_size, devices)
        self._origin = first_time(requests)
        self._epoch: tuple[int, np.ndarray] | None = None

    @property
    def filling(self) -> float:
        """The share of the tokens on devices that belong to no history."""
        room = self.shapes.rows * self.shapes.tokens
        return 1 - float(self._costs.mean()) * self.batch_size / room

    def __getitem__(self, step: int) -> RequestBatch:
        """The rows of this process of the batch of a global step."""
        epoch, number = divmod(step, self.steps_per_epoch)
        settings = self._settings
        if self._epoch is None or self._epoch[0] != epoch:
            dealt = deal_batches(self._costs, self.batch_size, settings.seed, epoch)
            self._epoch = epoch, dealt

        def read(request: int) -> Int64[np.ndarray, " t"]:
            length, sampled = settings.max_length, settings.history_sampling
            return tokens_of(self._requests, request, length, sampled, settings.seed, epoch)

        chosen = self._train[self._epoch[1][number]]
        batch, _ = pack(self._requests, chosen, read, self._dealt, self.shapes, self._origin)
        return rows_of_process(batch)


def evaluation_batches(
    requests: Requests,
    numbers: Int64[np.ndarray, " n"],
    training: Shapes,
    settings: RequestSettings,
) -> Iterator[tuple[RequestBatch, Int64[np.ndarray, "B M"]]]:
    """Yields requests in order, as many at a time as there is room for; all batches have one size.

    Args:
        requests: requests.
        numbers: numbers of those that are evaluated.
        training: sizes of batches for training.
        settings: settings of the run; the latest ``eval_length`` tokens of histories are read.

    Yields:
        A batch, and the place in the log of each of its candidates; negative for filling.
    """
    if not len(numbers):
        return
    length, counts = settings.evaluated_length, requests.counts[numbers]
    lengths = np.minimum(requests.lengths[numbers], length)
    tokens = costs(lengths, counts, training.one_by_one)
    shapes = shapes_for_evaluation(training, int(tokens.max()), int(counts.max()))
    room = [shapes.own * x for x in (shapes.tokens, shapes.candidates, shapes.sequences)]
    each = np.stack([tokens, counts, counts if training.one_by_one else np.ones_like(counts)])
    origin, start = first_time(requests), 0
    while start < len(numbers):
        # Each device takes requests until the next one has no room.
        dealt = np.full((shapes.devices, shapes.own * shapes.sequences), -1)
        first = start
        for device in range(shapes.devices):
            sums = np.cumsum(each[:, start : start + dealt.shape[1]], axis=1)
            count = min(
                int(np.searchsorted(x, most, "right")) for x, most in zip(sums, room, strict=True)
            )
            dealt[device, :count] = np.arange(start, start + count) - first
            start += count
        chosen = numbers[first:start]
        yield pack(
            requests, chosen, lambda x: tokens_of(requests, x, length), dealt, shapes, origin
        )
