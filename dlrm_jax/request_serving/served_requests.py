"""One loaded version of a model of requests, and the way in which it answers them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlrm_jax.errors import UserError
from dlrm_jax.inference.probabilities import sigmoid
from dlrm_jax.request_serving.rows_of_log import tensors_of
from dlrm_jax.requests.request_model import RequestModel
from dlrm_jax.requests.scorer import CheckedRequest
from dlrm_jax.serving.served_version import Observer, Probabilities, ServedVersion


class ServedRequests(ServedVersion[CheckedRequest]):
    """A model of requests that answers them in packs. The candidates of a request are its rows.

    Args:
        version: name of the version.
        model: model.
        most_candidates: most candidates of requests that are answered together.
        queued_candidates: most candidates that wait.
        observer: functions that are told of its work.
    """

    def __init__(
        self,
        version: str,
        model: RequestModel,
        most_candidates: int,
        queued_candidates: int,
        observer: Observer,
    ):
        self.model = model
        super().__init__(version, most_candidates, queued_candidates, observer)

    @property
    def labels(self) -> Sequence[str]:
        """The name of the label."""
        return (self.model.scorer.columns.label,)

    def inputs(self) -> list[dict[str, Any]]:
        """What the Open Inference Protocol says about the columns."""
        return tensors_of(self.model.scorer.columns, self.model.datatypes)

    def warm_up(self) -> None:
        """Compiles all sizes."""
        self.model.scorer.program.warm_up()

    def _answer(self, requests: Sequence[CheckedRequest]) -> list[Probabilities | Exception]:
        found = [_answer_of(logits) for logits in self.model.scorer.score_all(requests)]
        self._scores += [(None, x) for x in found if not isinstance(x, Exception)]
        return found


def _answer_of(logits: np.ndarray) -> Probabilities | Exception:
    """The probabilities of a request's candidates."""
    finite = np.isfinite(logits)
    if finite.all():
        return sigmoid(logits)
    return UserError(
        f"the prediction of candidate {int(np.argmin(finite))} (from 0) isn't finite: the tables "
        f"or the parameters of the model are damaged"
    )
