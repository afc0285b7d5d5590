"""The exchange of the rows of fully sharded slabs with their owners, on one device.

These functions run inside `jax.shard_map`; `FullySharded` calls them. A device gets the different
rows that its samples read into a *buffer*, and pools its bags from there. It asks in two like
stages: in its group, it asks shard m' for the rows whose owners are shard m' of their groups; that
shard asks these owners, once for each row that its group needs. On the way back, gradients of equal
rows are summed at the device, in the group, and at the owner. The bytes of a device depend neither
on the number of devices nor on repeated ids.

A collective has a fixed size, and no size holds all skews: an exchange takes as many *rounds* as
the fullest pair of devices needs, nearly always one. All contributions to a row are in one round,
so that the owner can sum and update it there.

Shapes: K ids of a device's samples in a slab; n partners in a stage, and C rows that a pair
exchanges in a round; R rows of the slab on a device.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from dlrm_jax.embedding import comm_dtype
from dlrm_jax.embedding.bag_cotangents import one_by_one
from dlrm_jax.embedding.packed_rows import take
from dlrm_jax.embedding.row_requests import message, sum_by_row, unique
from dlrm_jax.embedding.row_sums import RowSums
from dlrm_jax.embedding.slab import Slab
from dlrm_jax.embedding.state import Round, RowRequests

LATER_ROUNDS = "later_rounds"
"""Name of the scope of all rounds after the first, which seldom run."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of the exchange, in which each device asks n partners.

    Attributes:
        axes: axes of the mesh that the partners differ in.
        partners: number n of partners, the device itself among them.
        capacity: number C of rows that a pair exchanges in a round.
    """

    axes: tuple[str, ...]
    partners: int
    capacity: int

    def to_each(self, x: Shaped[Array, "n *c"]) -> Shaped[Array, "n *c"]:
        """Sends item k to partner k; the result has what each sent here."""
        if self.partners == 1:
            return x
        return jax.lax.all_to_all(x, self.axes, 0, 0, tiled=True)


def capacity(ids: int, partners: int, distinct: float = 1.0) -> int:
    """The number C of rows that a pair of devices exchanges in a round.

    If owners are drawn at random, the fullest of a million pairs has seldom more than the mean and
    five standard deviations.

    Args:
        ids: number K of ids of a device's samples.
        partners: number n of partners.
        distinct: expected share of them that name different rows.
    """
    mean = distinct * ids / partners
    return min(ids, math.ceil(mean + 5 * math.sqrt(mean)) + 4)


def stages(
    shape: Mapping[str, int],
    data: tuple[str, ...],
    model: str,
    ids: int,
    distinct: tuple[float, float],
) -> tuple[Stage, ...]:
    """The stages of an exchange: in the group, and between groups; one if there are no others.

    Args:
        shape: sizes of the mesh's axes, by name.
        data: names of the axes of groups.
        model: name of the axis of a group's shards.
        ids: number K of ids of a device's samples.
        distinct: expected share of different rows among them, and among the ids of a group.
    """
    found, most = [], ids
    for axes, share in zip(((model,), data), distinct, strict=True):
        partners = math.prod(shape[axis] for axis in axes)
        if partners > 1:
            size = min(most, capacity(ids, partners, share))
            found.append(Stage(axes, partners, size))
            most = partners * size
    return tuple(found) or (Stage((model,), 1, ids),)


def is_bounded(stages: Sequence[Stage], ids: int) -> bool:
    """Whether a round has room for all rows, whatever the ids."""
    most = ids
    for stage in stages:
        if stage.capacity < most:
            return False
        most *= stage.partners
    return True


@dataclasses.dataclass(frozen=True, eq=False)
class OwnerExchange:
    """The exchange of a slab's rows.

    Attributes:
        slab: fully sharded slab.
        stages: one or two stages of the exchange, see `stages`.
        axes: axes of all devices that the slab is split over.
        dtype: dtype of rows and gradients between devices; None keeps theirs.
        native: whether native kernels may be used.
        row_sums: way to sum gradients of equal rows, see `backend.Backend`.
    """

    slab: Slab
    stages: tuple[Stage, ...]
    axes: tuple[str, ...]
    dtype: str | None
    native: bool
    row_sums: RowSums

    def ask(self, requests: RowRequests) -> RowRequests:
        """The requests with their first round, which tells the owners what rows it is about."""
        first = self._round(requests, requests.starts[:-1])
        return dataclasses.replace(requests, first=first)

    def fetch(self, table: Shaped[Array, "_ _"], requests: RowRequests) -> Shaped[Array, "K d"]:
        """The buffer of the rows that this device asks for, in their storage dtype.

        Args:
            table: rows of this device. If they have 16 bits, they are sent as they are.
            requests: rows that its samples read, after `ask`.
        """
        wire = self.dtype if table.dtype == self.slab.vector_dtype else None
        size, width = self.stages[0].capacity, self.slab.width

        def answer(current: Round, buffer: Shaped[Array, "K d"]) -> Shaped[Array, "K d"]:
            # No place below looks for what isn't a row, so that it may have any numbers.
            vectors = comm_dtype.pack(take(table, current.rows, width, "clip"), wire)
            vectors = self.stages[-1].to_each(vectors)
            if current.slots is not None:
                flat = vectors.reshape(-1, width)
                vectors = self.stages[0].to_each(flat.at[current.slots].get(mode="clip"))
            received = comm_dtype.unpack(vectors, wire, table.dtype).reshape(-1, width)
            # Each place looks for its row, instead of each row for its place: a gather.
            place = jnp.arange(len(buffer), dtype=jnp.int32)
            partner = jnp.sum(place[:, None] >= requests.starts[1:], axis=1, dtype=jnp.int32)
            begin, end = (
                x.at[partner].get(mode="fill", fill_value=0) for x in (current.begin, current.next)
            )
            is_now = (begin <= place) & (place < end)
            rows = received.at[partner * size + place - begin].get(mode="clip")
            return jnp.where(is_now[:, None], rows, buffer)

        buffer = jnp.zeros((requests.rows.size, width), table.dtype)
        return self._rounds(requests, answer, buffer)

    def send_sums(
        self,
        requests: RowRequests,
        sums: Float[Array, "K d"],
        receive: Callable[[Int[Array, " N"], Float[Array, "N d"], Any], Any],
        carry: Any,
    ) -> Any:
        """Sends the gradients of rows to their owners, and calls ``receive`` there for each round.

        Args:
            requests: rows of this device's samples, after `ask`.
            sums: gradient of each, of these samples.
            receive: function of the rows and gradients that came from the partners of the last
                stage, N = n · C, and of the carry; it returns the next carry. Each row of the slab
                comes in one round alone, up to n times; numbers from R on mean "no row".
            carry: arrays that differ by device.
        """
        width = sums.shape[1]

        def sent(stage: Stage, gradients: Float[Array, "n C d"]) -> Float[Array, "n C d"]:
            received = stage.to_each(comm_dtype.pack(gradients, self.dtype))
            return comm_dtype.unpack(received, self.dtype, sums.dtype)

        def deliver(current: Round, carry: Any) -> Any:
            step = jnp.arange(self.stages[0].capacity, dtype=jnp.int32)
            places = current.begin[:, None] + step
            places = jnp.where(places < current.next[:, None], places, len(sums))
            gradients = sent(self.stages[0], sums.at[places].get(mode="fill", fill_value=0))
            if current.slots is not None:
                items = one_by_one((current.slots.reshape(-1), gradients.reshape(-1, width)))
                totals = sum_by_row(current.rows.size, items, self.row_sums, current.order)
                gradients = sent(self.stages[1], totals.reshape(*current.rows.shape, width))
            return receive(current.rows.reshape(-1), gradients.reshape(-1, width), carry)

        return self._rounds(requests, deliver, carry)

    def _rounds(self, requests: RowRequests, body: Callable[[Round, Any], Any], carry: Any) -> Any:
        """Calls ``body(round, carry)`` for one round after the other until all rows have come."""
        first = requests.first
        assert first is not None
        # The first round is outside of the loop, where XLA can move other work beside it.
        carry = body(first, carry)
        if first.more is None:
            return carry

        def later(state: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            with jax.named_scope(LATER_ROUNDS):
                current = self._round(requests, state[0])
                return current.next, current.more, body(current, state[2])

        return jax.lax.while_loop(lambda state: state[1], later, (first.next, first.more, carry))[2]

    def _round(self, requests: RowRequests, at: Int[Array, " n"]) -> Round:
        """The rows of a round; owners are told the numbers of theirs.

        A round has the rows below a limit that all devices agree on, one for each shard of a group:
        the least row that a message has no room for, in either stage.

        Args:
            requests: rows of this device's samples.
            at: place of the first row for each partner that hasn't come yet.
        """
        first, last = self.stages[0], self.stages[-1]
        count, none = requests.rows.size, self.slab.rows * (self.slab.shards // first.partners)
        numbers, left = message(requests, at, first.capacity, none)
        asked = first.to_each(numbers)
        passed_on = None if last is first else self._pass_on(asked, none)
        own = jax.lax.axis_index(first.axes)  # the number of this device as a partner
        if passed_on is not None:
            is_own = jnp.arange(first.partners, dtype=jnp.int32) == own
            left = jnp.where(is_own, jnp.minimum(left, passed_on[2]), left)
        limit, more = jnp.full_like(left, none), None
        if not is_bounded(self.stages, count):
            limit = jax.lax.pmin(left, self.axes)
            # The same on all devices, but kept for each of them, as the other arrays are.
            more = jax.lax.pcast(jnp.any(limit < none), self.axes, to="varying")
        is_now, own_limit = numbers < limit[:, None], limit[own]
        after = at + is_now.sum(axis=1, dtype=jnp.int32)
        if passed_on is None:
            rows = jnp.where(asked < own_limit, asked, self.slab.rows)
            return Round(at, None, None, rows, after, more)
        numbers, slots, _, order = passed_on
        rows = jnp.where(numbers < own_limit, numbers // last.partners, self.slab.rows)
        slots = jnp.where(asked < own_limit, slots, last.partners * last.capacity)
        return Round(at, slots, order, last.to_each(rows), after, more)

    def _pass_on(
        self, asked: Int[Array, "n C"], none: int
    ) -> tuple[Int[Array, "n2 C2"], Int[Array, "n C"], Int[Array, ""], Int[Array, " nC"] | None]:
        """The messages of the second stage.

        Args:
            asked: numbers of the rows that the partners of the first stage ask for.
            none: number for "no row".

        Returns:
            The numbers of the different rows among them, by partner; the slot of each of them in
            these messages; the least number that they have no room for; and the order of the slots
            in which equal ones lie side by side, None if it isn't known.
        """
        stage = self.stages[1]
        partner = jnp.where(asked < none, asked % stage.partners, stage.partners)
        found, places = unique(
            stage.partners,
            self.slab.rows,
            partner.reshape(-1),
            asked.reshape(-1) // stage.partners,
            self.native,
        )
        rows, left = message(found, found.starts[:-1], stage.capacity, self.slab.rows)
        index = jnp.arange(stage.partners, dtype=jnp.int32)
        slots = places.reshape(asked.shape) - found.starts[partner] + partner * stage.capacity
        numbers = rows * stage.partners + index[:, None]
        return numbers, slots, jnp.min(left * stage.partners + index), found.order
