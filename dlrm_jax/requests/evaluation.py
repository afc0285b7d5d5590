"""Logits and metrics of requests."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Float64, Int64

from dlrm_jax.data.auc import grouped_auc
from dlrm_jax.requests.batches import evaluation_batches
from dlrm_jax.requests.packing import RequestBatch, Shapes
from dlrm_jax.requests.requests import Requests
from dlrm_jax.requests.settings import RequestSettings
from dlrm_jax.sequential.packing import rows_of_process
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.metrics import binary_metrics

GAUC = "gauc:request"
"""The mean AUC of requests whose candidates have both labels, weighted by how many they have."""


class Evaluation:
    """Scores the candidates of requests.

    Args:
        learner: learner of `model.learner_for`.
        requests: requests.
        shapes: sizes of batches for training.
        settings: settings of the run.
    """

    def __init__(
        self, learner: Learner, requests: Requests, shapes: Shapes, settings: RequestSettings
    ):
        self._learner, self._requests = learner, requests
        self._shapes, self._settings = shapes, settings
        axes, collection = learner.axes, learner.collection

        def of_device(params: Any, model_state: Any, pooled: Any, batch: RequestBatch) -> Any:
            logits = learner.model(params, model_state)(pooled, batch)
            return logits.reshape(batch.labels.shape)

        whole = PartitionSpec()
        on_each = jax.shard_map(
            of_device,
            mesh=learner.mesh,
            in_specs=(whole, whole, axes.batch, axes.batch),
            out_specs=axes.batch,
            check_vma=False,
        )

        def of_batch(state: TrainState, batch: RequestBatch) -> Float[Array, "B M"]:
            pooled, _ = collection.lookup(state.embedding, batch.ids)
            return on_each(state.params, state.model_state, pooled, batch)

        self._logits = learner.jit(of_batch, out_shardings=learner.replicated)

    def __call__(
        self, state: TrainState, numbers: Int64[np.ndarray, " n"]
    ) -> dict[str, float | int]:
        """The metrics of some requests.

        Args:
            state: state.
            numbers: numbers of the requests.

        Raises:
            UserError: there is no candidate, or a logit isn't finite.
        """
        requests = self._requests
        places = requests.candidates_of(numbers)
        logits = self.logits(state, numbers)
        return metrics(logits, requests.labels[places], requests.counts[numbers])

    def logits(
        self, state: TrainState, numbers: Int64[np.ndarray, " n"]
    ) -> Float64[np.ndarray, " m"]:
        """The logits of the candidates of some requests, one request after the other."""
        requests, first = self._requests, self._requests.candidate_offsets
        found = np.zeros(int(first[-1]))
        for batch, places in evaluation_batches(requests, numbers, self._shapes, self._settings):
            placed = self._learner.put_evaluation(rows_of_process(batch))
            logits = np.asarray(self._logits(state, placed), np.float64)
            found[places[places >= 0]] = logits[places >= 0]
        return found[requests.candidates_of(numbers)]


def metrics(
    logits: Float64[np.ndarray, " m"],
    labels: Float[np.ndarray, " m"],
    counts: Int64[np.ndarray, " n"],
) -> dict[str, float | int]:
    """Those of `binary_metrics`, and GAUC by request.

    Args:
        logits: logits of the candidates, one request after the other.
        labels: their labels.
        counts: number of candidates of each request.

    Raises:
        UserError: see `binary_metrics`.
    """
    groups = np.repeat(np.arange(len(counts)), counts)
    return {**binary_metrics(logits, labels), GAUC: grouped_auc(logits, labels, groups)}
