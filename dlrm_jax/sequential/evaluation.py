"""Metrics of questions: the place of the item that was chosen among all items."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Float32, Int32, Int64

from dlrm_jax.retrieval.ranking import Ranking
from dlrm_jax.sequential.batches import question_batches
from dlrm_jax.sequential.interactions import Interactions
from dlrm_jax.sequential.metrics import by_stratum, coverage, metrics, strata_of
from dlrm_jax.sequential.model import ITEMS
from dlrm_jax.sequential.packing import SequenceBatch, Shapes, rows_of_process
from dlrm_jax.sequential.questions import Questions
from dlrm_jax.sequential.settings import SequentialSettings
from dlrm_jax.sequential.step import ids_of, packed, tokens_of
from dlrm_jax.training.learner import Learner, TrainState

_RANKED = 1024
"""Histories that are ranked at a time."""


class Evaluation:
    """Ranks all items for histories.

    Args:
        learner: learner of `model.learner_for`.
        interactions: interactions.
        shapes: sizes of the batches.
        settings: settings of the run.
    """

    def __init__(
        self,
        learner: Learner,
        interactions: Interactions,
        shapes: Shapes,
        settings: SequentialSettings,
    ):
        self._learner, self._data = learner, interactions
        self._shapes, self._settings = shapes, settings
        # Each process ranks all: vectors are small beside what it takes to make them.
        self._ranking = Ranking(learner.mesh.local_mesh, _RANKED)
        collection, axes, negatives = learner.collection, learner.axes, bool(settings.negatives)

        def of_device(params: Any, model_state: Any, pooled: Any, batch: Any) -> Any:
            model, sequences = learner.model(params, model_state), packed(batch)
            found = model.histories(tokens_of(pooled[ITEMS]), sequences)
            ends = jnp.cumsum(batch.lengths) - 1
            return found[jnp.maximum(ends, 0)]

        whole = PartitionSpec()
        on_each = jax.shard_map(
            of_device,
            mesh=learner.mesh,
            in_specs=(whole, whole, axes.batch, axes.batch),
            out_specs=axes.batch,
            check_vma=False,
        )

        def of_batch(state: TrainState, batch: SequenceBatch) -> Float[Array, "B d"]:
            pooled, _ = collection.lookup(state.embedding, ids_of(batch, negatives))
            return on_each(state.params, state.model_state, pooled, batch)

        self._histories = learner.jit(of_batch, out_shardings=learner.replicated)

    def __call__(self, state: TrainState, questions: Questions) -> dict[str, float]:
        """``hr@k``, ``ndcg@k`` and ``mrr`` of a state, with the k of the metric that chooses one.

        Args:
            state: state.
            questions: questions.
        """
        histories, items = self.histories(state, questions), self.items(state)
        return metrics(self._places(histories, items, questions), self._settings.at_with_metric)

    def in_full(
        self, state: TrainState, questions: Questions, counts: Int64[np.ndarray, " V"]
    ) -> dict[str, Any]:
        """The metrics of a state and those of a ranking by popularity, with what they recommend.

        Args:
            state: state.
            questions: questions.
            counts: interactions of each item for training.

        Returns:
            By ``model`` and ``popularity``: metrics, ``coverage@k``, and ``strata``, the metrics of
            the questions whose item is of the head, the middle and the tail of the items.
        """
        histories, items = self.histories(state, questions), self.items(state)
        same = np.ones((len(questions.asked), 1), np.float32)
        by_count = counts[:, None].astype(np.float32)
        return {
            "model": self._report(histories, items, questions, counts),
            "popularity": self._report(same, by_count, questions, counts),
        }

    def _report(
        self,
        histories: Float32[np.ndarray, "Q d"],
        items: Float32[np.ndarray, "V d"],
        questions: Questions,
        counts: Int64[np.ndarray, " V"],
    ) -> dict[str, Any]:
        places = self._places(histories, items, questions)
        at = self._settings.at_with_metric
        excluded = self._excluded(questions)
        recommended = np.array(self._ranking.first(histories, items, max(at), excluded))
        # Who has seen nearly all items is recommended no others, though places are filled.
        for row in np.flatnonzero((excluded >= 0).sum(axis=1) > len(items) - max(at)):
            recommended[row, np.isin(recommended[row], excluded[row])] = -1
        strata = strata_of(counts)[self._data.items[questions.asked]]
        return {
            **metrics(places, at),
            **coverage(recommended, len(items), at),
            "strata": by_stratum(places, strata, at),
        }

    def _places(
        self,
        histories: Float32[np.ndarray, "Q d"],
        items: Float32[np.ndarray, "V d"],
        questions: Questions,
    ) -> Int64[np.ndarray, " Q"]:
        """The number of items that are ranked before the chosen one, ties included."""
        chosen = self._data.items[questions.asked]
        return self._ranking(histories, items, chosen, self._excluded(questions))

    def histories(self, state: TrainState, questions: Questions) -> Float32[np.ndarray, "Q d"]:
        """The vectors of the questions' histories."""
        found = np.zeros((len(questions.asked), self._settings.width), np.float32)
        length = self._settings.max_length
        for numbers, batch, places in question_batches(self._data, questions, self._shapes, length):
            placed = self._learner.put_evaluation(rows_of_process(batch))
            found[numbers] = np.asarray(self._histories(state, placed))[places]
        return found

    def items(self, state: TrainState) -> Float32[np.ndarray, "V d"]:
        """The vectors of all items."""
        numbers = np.arange(len(self._data.values), dtype=np.int32)
        rows = self._learner.collection.read_rows(state.embedding, {"items": numbers})["items"]
        model = self._learner.model(state.params, state.model_state)
        return np.asarray(model.items(jnp.asarray(rows)), np.float32)

    def _excluded(self, questions: Questions) -> Int32[np.ndarray, "Q E"]:
        """The items of the histories, if they aren't ranked; negative for none."""
        if not self._settings.exclude_seen:
            return np.full((len(questions.asked), 1), -1, np.int32)
        lengths = questions.asked - questions.firsts
        place = questions.firsts[:, None] + np.arange(lengths.max())
        there = place < questions.asked[:, None]
        return np.where(there, self._data.items[np.where(there, place, 0)], -1).astype(np.int32)
