"""One loaded version of a model of sequences, and the way in which it answers requests together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlrm_jax.errors import UserError
from dlrm_jax.sequential.recommender import Question, Recommended, Recommender
from dlrm_jax.serving.served_version import Observer, ServedVersion

Asked = list[Question]
Answered = list[Recommended]


class ServedRecommender(ServedVersion[Asked]):
    """A model of sequences that answers histories in packs. Each history is a row.

    Args:
        version: name of the version.
        recommender: model.
        most_rows: most histories of requests that are answered together.
        queued_rows: most histories that wait.
        observer: functions that are told of its work.
    """

    def __init__(
        self,
        version: str,
        recommender: Recommender,
        most_rows: int,
        queued_rows: int,
        observer: Observer,
    ):
        self.recommender = recommender
        super().__init__(version, most_rows, queued_rows, observer)

    @property
    def labels(self) -> Sequence[str]:
        """None, as answers are items."""
        return ()

    def inputs(self) -> list[dict[str, Any]]:
        """None, as the Open Inference Protocol has no names for histories of many lengths."""
        return []

    def outputs(self) -> list[dict[str, Any]]:
        """None, as for `inputs`."""
        return []

    def warm_up(self) -> None:
        """Compiles all sizes."""
        self.recommender.warm_up()

    def _answer(self, requests: Sequence[Asked]) -> Sequence[Answered | Exception]:
        try:
            found = iter(self.recommender.answer([each for asked in requests for each in asked]))
        except UserError as error:  # a score that isn't a number
            if len(requests) == 1:
                return [error]
            return [self._answer([asked])[0] for asked in requests]
        return [[next(found) for _ in asked] for asked in requests]
