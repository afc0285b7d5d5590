"""Recommendations of a trained model: histories as the log has them in, the best items out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Int32

from dlrm_jax.errors import UserError, shown
from dlrm_jax.sequential.history_times import refuse_times, relative_times
from dlrm_jax.sequential.item_values import ItemValues, plain_values
from dlrm_jax.sequential.model import NextItem
from dlrm_jax.sequential.ranking_program import MOST_ITEMS, Pack, RankingProgram
from dlrm_jax.sequential.settings import SequentialSettings
from dlrm_jax.training.learner import Learner, TrainState


class Question(NamedTuple):
    """A history that the model reads, and what is asked of it.

    Attributes:
        items: numbers of the latest items, [n].
        times: their times in seconds from the question's, [n]; zeros where nothing reads them.
        wanted: number of items that are wanted.
        excluded: numbers of items that are left out, [e].
        unknown: number of items of the history that the model doesn't know.
    """

    items: Int32[np.ndarray, " n"]
    times: Int32[np.ndarray, " n"]
    wanted: int
    excluded: Int[np.ndarray, " e"]
    unknown: int


class Recommended(NamedTuple):
    """The best items of a history.

    Attributes:
        items: values of the items, the best one first; fewer than were asked for if no more are
            left.
        scores: score of each: the softmax's logit, which is the product of the vectors of history
            and item over the temperature.
        unknown: number of items of the history that were skipped, since the log of training didn't
            have them.
    """

    items: list[Any]
    scores: Float32[np.ndarray, " k"]
    unknown: int


class Recommender:
    """A trained model of sequences on one device, with the values of its items.

    Histories are filled up to one of few sizes, so that a call compiles only when its size is new;
    `warm_up` compiles them all.

    Args:
        settings: settings of the run.
        model: trained model.
        table: vectors of the items, [V, d].
        values: value of each item in the log, [V].

    Raises:
        UserError: values are neither integers nor floats nor strings.
    """

    def __init__(
        self,
        settings: SequentialSettings,
        model: NextItem,
        table: Float[Array, "V d"],
        values: pl.Series,
    ):
        self.settings, self.model, self.table = settings, model, table
        self.items = ItemValues(plain_values(values))
        self.program = RankingProgram(model, table, settings.max_length)

    def __repr__(self) -> str:
        """One line."""
        settings = self.settings
        return f"Recommender({settings.encoder}, {len(self.items):,} items, width {settings.width})"

    @classmethod
    def of_state(
        cls, learner: Learner, settings: SequentialSettings, state: TrainState, values: pl.Series
    ) -> Recommender:
        """The recommender of a train state, on any mesh of one process.

        Args:
            learner: learner of `model.learner_for`.
            settings: settings of the run.
            state: state, such as that of the best checkpoint.
            values: see `Recommender`.

        Raises:
            UserError: see `Recommender`.
        """
        arrays = learner.collection.iter_arrays(state.embedding)
        (table,) = (np.asarray(x) for _, name, x in arrays if name == "table")
        graph, own = nnx.split(learner.model(state.params, state.model_state))
        own = jax.tree.map(lambda x: x if _is_key(x) else jnp.asarray(np.asarray(x)), own)
        return cls(settings, nnx.merge(graph, own), jnp.asarray(table), values)

    @property
    def is_timed(self) -> bool:
        """Whether the model reads times."""
        return self.settings.encoder == "hstu"

    def recommend(
        self,
        histories: Sequence[Any],
        k: int = 10,
        times: Sequence[Any] | None = None,
        time: Sequence[Any] | None = None,
        exclude_seen: bool | None = None,
    ) -> list[Recommended]:
        """The k best items of each history.

        Args:
            histories: items of each user as the log has them, the oldest first.
            k: number of items, at most `MOST_ITEMS`; fewer are given where no more are left.
            times: times of these, in seconds or dates, where the model reads them.
            time: time of each user's question, in seconds or a date, where the model reads times.
            exclude_seen: whether items of a history are left out; None for what the run did.

        Raises:
            UserError: see `question`; the message names the user.
        """
        count = len(histories)
        for name, given in (("times", times), ("time", time)):
            if given is not None and len(given) != count:
                raise UserError(f"{name}: expected {count:,}, one a history, got {len(given):,}")
        questions = []
        for i, history in enumerate(histories):
            own = None if times is None else times[i]
            try:
                asked = None if time is None else time[i]
                questions.append(self.question(history, k, own, asked, exclude_seen))
            except UserError as error:
                raise UserError(f"history {i:,}: {error}") from error
        return self.answer(questions)

    def question(
        self,
        history: Any,
        k: int = 10,
        times: Any = None,
        time: Any = None,
        exclude_seen: bool | None = None,
    ) -> Question:
        """A question for `answer`; of a longer history than ``max_length`` the end is read.

        Items that the log of training didn't have are skipped, with their times.

        Args:
            history: items of a user, see `recommend`.
            k: see `recommend`.
            times: times of the items, ascending.
            time: time of the question, not before the last one.
            exclude_seen: see `recommend`.

        Raises:
            UserError: no item is known, values aren't of the log's type, k is out of range, or
                times are missing, given to a model that doesn't read them, not as many as items,
                not ascending, or 68 years before the question.
        """
        is_number = isinstance(k, int | np.integer) and not isinstance(k, bool)
        if not is_number or not 1 <= k <= MOST_ITEMS:
            raise UserError(f"k: expected a number from 1 to {MOST_ITEMS:,}, got {shown(k)}")
        if isinstance(history, str | bytes) or not hasattr(history, "__iter__"):
            raise UserError(f"history: expected a list of items, got {shown(history)}")
        numbers = self.items.numbers(history)
        if self.is_timed:
            relative = relative_times(times, time, len(numbers))
        else:
            refuse_times(self.settings.encoder, times=times, time=time)
            relative = np.zeros(len(numbers), np.int32)
        known = numbers >= 0
        if not known.any():
            raise UserError(
                f"history: expected at least one item that the log of training had, got "
                f"{len(numbers):,} items and none of them"
            )
        exclude = self.settings.exclude_seen if exclude_seen is None else exclude_seen
        latest = slice(max(0, int(known.sum()) - self.settings.max_length), None)
        return Question(
            numbers[known][latest].astype(np.int32),
            relative[known][latest],
            min(int(k), self.program.first_sizes[-1]),
            np.unique(numbers[known]) if exclude else numbers[:0],
            int((~known).sum()),
        )

    def answer(self, questions: Sequence[Question]) -> list[Recommended]:
        """The answer to each question; they are packed while they fit into the largest sizes.

        Args:
            questions: results of `question`.
        """
        packs: list[list[Question]] = []
        room = 0
        for each in questions:
            if not packs or len(each.items) > room or len(packs[-1]) == self._most_histories:
                packs.append([])
                room = self.program.token_sizes[-1]
            packs[-1].append(each)
            room -= len(each.items)
        return [found for pack in packs for found in self._answers(pack)]

    def warm_up(self) -> None:
        """Compiles all programs."""
        self.program.warm_up()

    @property
    def _most_histories(self) -> int:
        return self.program.history_sizes[-1]

    def vectors(self, questions: Sequence[Question]) -> Float32[np.ndarray, "n d"]:
        """The vectors of the histories of a pack.

        Args:
            questions: at most as many questions and tokens as the largest sizes.
        """
        following = [np.append(x.times[1:], np.int32(0)) for x in questions]
        return self.program.encode(
            Pack(
                np.concatenate([x.items for x in questions]),
                np.concatenate([x.times for x in questions]),
                np.concatenate(following),
                np.asarray([len(x.items) for x in questions], np.int32),
            )
        )

    def _answers(self, questions: Sequence[Question]) -> list[Recommended]:
        excluded = None
        if any(len(x.excluded) for x in questions):
            excluded = np.zeros((len(questions), len(self.items)), bool)
            for row, question in zip(excluded, questions, strict=True):
                row[question.excluded] = True
        most = max(x.wanted for x in questions)
        numbers, products = self.program.first(self.vectors(questions), most, excluded)
        if np.isnan(products).any():
            raise UserError(
                "a score isn't a number: the tables or the parameters of the model are damaged"
            )
        found = []
        for question, own, scores in zip(questions, numbers, products, strict=True):
            left = own[: question.wanted][scores[: question.wanted] > -np.inf]
            logits = scores[: len(left)] / np.float32(self.settings.temperature)
            found.append(Recommended(self.items.decoded(left), logits, question.unknown))
        return found


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
