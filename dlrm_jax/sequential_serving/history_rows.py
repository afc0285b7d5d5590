"""Histories as a client sends them, and the answer that it gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from dlrm_jax.errors import UserError, cut
from dlrm_jax.sequential.recommender import Question, Recommended, Recommender

_EXPECTED = (
    '{"rows": [{"history": [item, …], "times": [seconds, …], "time": seconds}, …], "k": number, '
    '"exclude_seen": true or false}, without what the model doesn\'t read'
)


class HistoryRow(msgspec.Struct, forbid_unknown_fields=True):
    """The history of a user; see `Recommender.question`.

    Attributes:
        history: items, the oldest first.
        times: their times in seconds; None where the model doesn't read them.
        time: time of the question in seconds; None where the model doesn't read it.
    """

    history: list[Any]
    times: list[int] | None = None
    time: int | None = None


class HistoryRows(msgspec.Struct, forbid_unknown_fields=True):
    """A request.

    Attributes:
        rows: histories.
        k: number of items for each.
        exclude_seen: whether items of a history are left out; None for what the run did.
    """

    rows: list[HistoryRow]
    k: int = 10
    exclude_seen: bool | None = None

    def __len__(self) -> int:
        return len(self.rows)


def read_histories(body: bytes) -> HistoryRows:
    """Reads a request.

    Args:
        body: body of the HTTP request, JSON.

    Raises:
        UserError: it isn't one.
    """
    try:
        return msgspec.json.decode(body, type=HistoryRows)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"expected {_EXPECTED}: {cut(str(error), 300)}") from error


def questions_of(recommender: Recommender, given: HistoryRows) -> list[Question]:
    """The questions of a request.

    Args:
        recommender: recommender that they are for.
        given: request.

    Raises:
        UserError: one can't be answered; the message names the row.
    """
    found = []
    for number, row in enumerate(given.rows):
        try:
            asked = (row.history, given.k, row.times, row.time, given.exclude_seen)
            found.append(recommender.question(*asked))
        except UserError as error:
            raise UserError(f"row {number}: {error}") from error
    return found


def answer_of(found: Sequence[Recommended]) -> dict[str, Any]:
    """The JSON of an answer."""
    rows = ({"items": x.items, "scores": x.scores.tolist(), "unknown": x.unknown} for x in found)
    return {"recommendations": list(rows)}
