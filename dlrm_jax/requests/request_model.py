"""A trained model of requests that takes values as the log has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from dlrm_jax.errors import UserError, shown
from dlrm_jax.requests.log_types import as_logged, datatype_of
from dlrm_jax.requests.scorer import CheckedRequest, Encoded, RequestScorer
from dlrm_jax.requests.value_ids import ValueIds
from dlrm_jax.sequential.single_values import as_series


class RequestModel:
    """A saved model, which takes values as the log has them.

    Args:
        scorer: scorer of rows.
        vocabularies: vocabulary of each table; none where values are rows already.
    """

    def __init__(self, scorer: RequestScorer, vocabularies: Mapping[str, ValueIds]):
        self.scorer, self.vocabularies = scorer, dict(vocabularies)

    @property
    def datatypes(self) -> dict[str, str]:
        """The type of the values of each table in the Open Inference Protocol."""
        known = self.vocabularies
        return {
            table: datatype_of(known[table].dtype) if table in known else "INT64"
            for table in self.scorer.tables
        }

    def encode(self, history: Mapping[str, Any], times: Any = None, time: Any = None) -> Encoded:
        """Encodes a history; see `RequestScorer.encode`.

        Args:
            history: values of each column, the oldest first.
            times: time of each token in seconds, or dates, where the model has times.
            time: time of the request in seconds, or a date.

        Raises:
            UserError: see `RequestScorer.encode`, or values have another type than the log's.
        """
        ids = self._ids("history", self.scorer.columns.history, history)
        return self.scorer.encode(ids, times, time)

    def score(
        self,
        encoded: Encoded,
        candidates: Mapping[str, Any],
        context: Mapping[str, Any],
        time: Any = None,
    ) -> Float32[np.ndarray, " m"]:
        """The logits of candidates; see `RequestScorer.score`.

        Args:
            encoded: result of `encode`.
            candidates: values of each column.
            context: value of each column.
            time: time in seconds, or a date, where it isn't that of `encode` any more.

        Raises:
            UserError: see `RequestScorer.score`, or values have another type than the log's.
        """
        ids = self._ids("candidates", self.scorer.columns.candidates, candidates)
        return self.scorer.score(encoded, ids, self._of_context(context), time)

    def checked(
        self,
        history: Mapping[str, Any],
        candidates: Mapping[str, Any],
        context: Mapping[str, Any],
        times: Any = None,
        time: Any = None,
    ) -> CheckedRequest:
        """A request for `RequestScorer.score_all`.

        The arguments and errors are those of `encode` and `score`.
        """
        columns = self.scorer.columns
        return self.scorer.checked(
            self._ids("history", columns.history, history),
            self._ids("candidates", columns.candidates, candidates),
            self._of_context(context),
            times,
            time,
        )

    def _of_context(self, context: Mapping[str, Any]) -> dict[str, Any]:
        single = {name: [value] for name, value in context.items()}
        ids = self._ids("context", self.scorer.columns.context, single)
        return {name: x[0] for name, x in ids.items()}

    def _ids(
        self, part: str, tables: Mapping[str, str], values: Mapping[str, Any]
    ) -> dict[str, np.ndarray]:
        """The rows of the values of a part."""
        if set(values) != set(tables):
            raise UserError(
                f"{part}: expected the columns {', '.join(sorted(tables)) or 'none'}, got "
                f"{', '.join(sorted(values)) or 'none'}"
            )
        return {name: self._rows(part, name, tables[name], own) for name, own in values.items()}

    def _rows(self, part: str, name: str, table: str, values: Any) -> np.ndarray:
        is_known = table in self.vocabularies
        if is_known:
            found = self.vocabularies[table].known(values, part == "context")
            if found is not None:
                return found
        series = as_series(values)
        if series is None:
            one, several = "a single value", "a list of single values of one type"
            wanted, got = (one, values[0]) if part == "context" else (several, values)
            raise UserError(f"{part}: {name}: expected {wanted}, got {shown(got)}")
        if series.null_count() and not (part == "context" and is_known):
            raise UserError(f"{part}: {name}: expected a value in each place, got a missing one")
        if not is_known or not len(series):
            return series.to_numpy()
        vocabulary = self.vocabularies[table]
        try:
            return vocabulary.encode(as_logged(series, vocabulary.dtype))
        except UserError as error:
            raise UserError(f"{part}: {name}: {error}") from error
