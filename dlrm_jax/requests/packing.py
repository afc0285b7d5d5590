"""Packed requests: the histories of a device lie one behind the other, and so do candidates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from dlrm_jax.attention.block_pairs import BLOCK
from dlrm_jax.data.arrays import ABSENT
from dlrm_jax.errors import UserError
from dlrm_jax.requests.requests import Requests, spans
from dlrm_jax.sequential.dealing import tokens_for


class RequestBatch(NamedTuple):
    """B rows of D devices, S sequences each. Where a row ends means nothing within a device.

    A sequence is a history with the candidates that read it. A device's tokens are its rows' K
    tokens, one behind the other: first those of its sequences, then filling. The same is true of
    its rows' M candidates.

    Attributes:
        lengths: number of tokens of each sequence, [B, S] int32; 0 for none.
        counts: number of candidates of each sequence, [B, S] int32; 0 for none.
        ids: ids of the columns of the history, [B, K] each, of the candidates, [B, M] each, and of
            the context, [B, S] each, side by side, int32; `ABSENT` for filling.
        numbers: number of each token in the batch, [B, K] int32, the same on every mesh.
        candidate_numbers: number of each candidate in the batch, [B, M] int32, likewise.
        times: time of each token, [B, K] int32, in seconds since the first one of the data; None
            without times.
        next_times: time of the token that follows, or of the request, [B, K] int32; or None.
        request_times: time of each sequence's request, [B, S] int32; or None.
        labels: label of each candidate, [B, M] float32.
        sample_weights: weight of each candidate in the loss, [B, M] float32; 0 for filling.
    """

    lengths: Any
    counts: Any
    ids: Any
    numbers: Any
    candidate_numbers: Any
    times: Any
    next_times: Any
    request_times: Any
    labels: Any
    sample_weights: Any


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The sizes of batches.

    Attributes:
        rows: number of rows of a batch, B.
        devices: number of devices, D.
        tokens: number of tokens of a row, K.
        candidates: number of candidates of a row, M.
        one_by_one: whether each candidate has its own copy of the history.
    """

    rows: int
    devices: int
    tokens: int
    candidates: int
    one_by_one: bool

    @property
    def sequences(self) -> int:
        """The number of sequences of a row, S."""
        return self.candidates if self.one_by_one else 1

    @property
    def own(self) -> int:
        """The number of rows of a device."""
        return self.rows // self.devices


def shapes_for(
    lengths: Int64[np.ndarray, " n"],
    counts: Int64[np.ndarray, " n"],
    batch_size: int,
    devices: int,
    one_by_one: bool,
) -> Shapes:
    """The sizes of training batches, in which each that is dealt out has room.

    Args:
        lengths: number of tokens that are read of each request to train on.
        counts: number of candidates of each, at least 1.
        batch_size: requests of a batch, B, a multiple of the devices.
        devices: number of devices.
        one_by_one: whether each candidate has its own copy of the history.

    Raises:
        UserError: there are fewer requests than a batch has.
    """
    if len(lengths) < batch_size:
        raise UserError(
            f"batch_size: expected at most the {len(lengths):,} requests with candidates to train "
            f"on, got {batch_size:,}"
        )
    own = batch_size // devices
    room = tokens_for(costs(lengths, counts, one_by_one), batch_size, devices, BLOCK)
    tokens = -(-max(room, BLOCK) // own)
    while own * tokens % BLOCK:
        tokens += 1
    candidates = -(-int(np.sort(counts)[-own:].sum()) // own)
    return Shapes(batch_size, devices, tokens, candidates, one_by_one)


def shapes_for_evaluation(shapes: Shapes, tokens: int, candidates: int) -> Shapes:
    """The sizes of batches for evaluation: rows of training, as many as the largest request needs.

    Args:
        shapes: sizes for training.
        tokens: greatest number of tokens of a request, with copies.
        candidates: greatest number of candidates of a request.
    """
    rows = max(-(-tokens // shapes.tokens), -(-candidates // shapes.candidates), 1)
    own = -(-rows // shapes.own) * shapes.own
    return dataclasses.replace(shapes, rows=own * shapes.devices)


def costs(
    lengths: Int64[np.ndarray, " n"], counts: Int64[np.ndarray, " n"], one_by_one: bool
) -> Int64[np.ndarray, " n"]:
    """The number of tokens of each request in a batch, with copies."""
    return lengths * counts if one_by_one else lengths


def first_time(requests: Requests) -> int:
    """The time from which those of batches are counted; 0 without times.

    Raises:
        UserError: times are more than 2^31 seconds, 68 years, apart.
    """
    if requests.history_times is None or requests.times is None:
        return 0
    known = [x for x in (requests.history_times, requests.times) if len(x)]
    first, last = min(int(x.min()) for x in known), max(int(x.max()) for x in known)
    if last - first >= 2**31:
        raise UserError(
            f"times: expected seconds that are less than 68 years apart, got some from {first} to "
            f"{last}; give them in seconds"
        )
    return first


def pack(
    requests: Requests,
    chosen: Int64[np.ndarray, " n"],
    tokens_of: Callable[[int], Int64[np.ndarray, " t"]],
    dealt: Int64[np.ndarray, "D b"],
    shapes: Shapes,
    origin: int,
) -> tuple[RequestBatch, Int64[np.ndarray, "B M"]]:
    """Lays requests out for devices.

    Args:
        requests: requests.
        chosen: numbers of the requests of the batch.
        tokens_of: function that gives the places of a request's tokens that are read.
        dealt: places in ``chosen`` of the requests of each device; negative for none.
        shapes: sizes of the batch.
        origin: result of `first_time`.

    Returns:
        The batch, and the place in the log of each candidate; negative for filling.
    """
    token, candidate, sequences, numbers = _laid_out(requests, chosen, tokens_of, dealt, shapes)
    owner, lengths, counts = sequences

    def rows(flat: np.ndarray, dtype: type = np.int32) -> np.ndarray:
        return flat.reshape(shapes.rows, -1).astype(dtype)

    ids = [rows(_at(x, token, ABSENT)) for x in requests.history.values()]
    ids += [rows(_at(x, candidate, ABSENT)) for x in requests.candidates.values()]
    ids += [rows(_at(x, owner, ABSENT)) for x in requests.context.values()]
    times = following = of_requests = None
    if requests.history_times is not None and requests.times is not None:
        times = _at(requests.history_times, token, origin) - origin
        of_requests = _at(requests.times, owner, origin) - origin
        following = np.roll(times, -1, axis=1)
        device, place = np.nonzero(lengths)
        ends = np.cumsum(lengths, axis=1)[device, place] - 1
        following[device, ends] = of_requests[device, place]
        times, following, of_requests = rows(times), rows(following), rows(of_requests)
    batch = RequestBatch(
        lengths=rows(lengths),
        counts=rows(counts),
        ids=np.concatenate(ids, axis=1),
        numbers=rows(numbers[0]),
        candidate_numbers=rows(numbers[1]),
        times=times,
        next_times=following,
        request_times=of_requests,
        labels=rows(_at(requests.labels, candidate, 0), np.float32),
        sample_weights=rows(candidate >= 0, np.float32),
    )
    return batch, candidate.reshape(shapes.rows, -1)


def _laid_out(
    requests: Requests,
    chosen: Int64[np.ndarray, " n"],
    tokens_of: Callable[[int], Int64[np.ndarray, " t"]],
    dealt: Int64[np.ndarray, "D b"],
    shapes: Shapes,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The arguments are those of `pack`.

    Returns:
        Place in the log of each token and of each candidate of a device, negative for filling,
        [D, T] and [D, N]; request, tokens and candidates of each sequence, [3, D, s]; number of
        each token and of each candidate in the batch.
    """
    read, counts = [tokens_of(int(x)) for x in chosen], requests.counts[chosen]
    ones = np.ones_like(counts)
    copies, of_one = (counts, ones) if shapes.one_by_one else (ones, counts)
    sizes = np.asarray([len(x) for x in read], np.int64)
    before, candidates_before = (np.cumsum(x) - x for x in (sizes * copies, counts))
    token, candidate, owner = (
        np.full((shapes.devices, shapes.own * size), -1)
        for size in (shapes.tokens, shapes.candidates, shapes.sequences)
    )
    number, candidate_number = np.zeros_like(token), np.zeros_like(candidate)
    sequences = np.stack([owner, np.zeros_like(owner), np.zeros_like(owner)])
    for device, places in enumerate(dealt):
        some = places[places >= 0]
        if not len(some):
            continue
        together = np.concatenate([np.tile(read[i], copies[i]) for i in some])
        token[device, : len(together)] = together
        number[device, : len(together)] = spans(before[some], (sizes * copies)[some])
        of_device = spans(requests.candidate_offsets[chosen[some]], counts[some])
        candidate[device, : len(of_device)] = of_device
        candidate_number[device, : len(of_device)] = spans(candidates_before[some], counts[some])
        each = np.repeat(some, copies[some])
        sequences[:, device, : len(each)] = chosen[each], sizes[each], of_one[each]
    return token, candidate, sequences, (number, candidate_number)


def _at(values: np.ndarray, places: np.ndarray, absent: int) -> np.ndarray:
    """The values in some places; ``absent`` where these are negative."""
    if not len(values):
        return np.full(places.shape, absent, values.dtype)
    return np.where(places >= 0, values[places], absent)
