"""The way of ids to the processes that have the parts of the maps, and of rows back.

A unit is a part of a map. Units are numbered over all maps, and process p of P has the units p,
p + P, p + 2 P, …. An owner sees the ids of all processes in the order of the processes, which is
that of the samples of a batch: it gives the rows that one process with all samples would give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32, Int64, UInt64

from dlrm_jax.dynamic_ids.messages import packed, unpacked
from dlrm_jax.errors import UserError

_ERROR = "error"


@runtime_checkable
class Exchange(Protocol):
    """What sends bytes between processes: `host_exchange.HostExchange`."""

    index: int
    count: int

    def all_to_all(self, messages: Sequence[bytes]) -> list[bytes]:
        """Sends each process a message, and gets one from each."""
        ...

    def close(self) -> None:
        """Ends all that waits for messages."""
        ...


class Asked(NamedTuple):
    """The ids of a batch at the owners of their units.

    Attributes:
        keys: ids of each unit that is here, of all processes.
        counts: number of ids of each unit here that each process asked for, [P, owned].
        own: number of ids of each unit that this process has asked for, [units].
    """

    keys: list[UInt64[np.ndarray, " _"]]
    counts: Int64[np.ndarray, "P owned"]
    own: Int64[np.ndarray, " units"]


class UnitRows(NamedTuple):
    """The rows of ids of a unit, and those that begin afresh.

    Attributes:
        rows: row of each id.
        fresh: rows whose id is new.
    """

    rows: Int32[np.ndarray, " N"]
    fresh: Int32[np.ndarray, " F"]


class Routing:
    """Sends ids and rows. All processes call each method together; one thread at a time.

    Args:
        units: number of units.
        exchange: connections to the other processes; None where there are none.
    """

    def __init__(self, units: int, exchange: Exchange | None):
        self._exchange = exchange
        self._index, self._count = (exchange.index, exchange.count) if exchange else (0, 1)
        self._units = units

    def owned(self, process: int | None = None) -> range:
        """The units of a process; of this one by default."""
        return range(self._index if process is None else process, self._units, self._count)

    def ask(self, keys: Callable[[], Sequence[UInt64[np.ndarray, " _"]]]) -> Asked:
        """Sends the ids of a batch to their owners.

        Args:
            keys: function that gives the ids of each unit that this process has.

        Raises:
            UserError: the function raised it in a process; it is raised in all.
        """
        if self._exchange is None:
            found = [*keys()]
            counts = np.array([len(x) for x in found], np.int64)
            return Asked(found, counts[None], counts)
        own, failure = [], None
        try:
            own = [*keys()]
            messages = [
                packed(_concatenated("keys", own[process :: self._count], np.uint64))
                for process in range(self._count)
            ]
        except UserError as error:  # which the others wait for, too
            failure, messages = error, [_failed(error)] * self._count
        received = [_split("keys", each) for each in self._share(messages, failure)]
        together = [np.concatenate(x) for x in zip(*received, strict=True)]
        counts = np.array([[len(x) for x in each] for each in received], np.int64)
        return Asked(together, counts, np.array([len(x) for x in own], np.int64))

    def answer(
        self, asked: Asked, found: Sequence[UnitRows], now: int = 0, error: UserError | None = None
    ) -> list[UnitRows]:
        """Sends rows back to those who asked, and fresh ones to all.

        Args:
            asked: result of `ask`.
            found: rows of each unit that is here, for all ids of `asked`.
            now: time of the batch, which must be that of all processes.
            error: reason why there are none.

        Returns:
            The rows of this process's ids, by unit.

        Raises:
            UserError: a process has an error, or another time; it is raised in all.
        """
        if self._exchange is None:
            if error:
                raise error
            return [*found]
        messages = [_failed(error)] * self._count if error else self._answers(asked, found, now)
        by_unit: list[UnitRows | None] = [None] * self._units
        received = self._share(messages, error)
        times = [int(message["now"][0]) for message in received]
        if len({*times}) > 1:
            raise UserError(
                f"now: expected one time in all processes, got {', '.join(map(str, times))}; give "
                f"all the same batches at the same time"
            )
        for process, message in enumerate(received):
            units = self.owned(process)
            rows = np.split(message["rows"], np.cumsum(asked.own[units])[:-1]) if units else []
            for unit, own, fresh in zip(units, rows, _split("fresh", message), strict=True):
                by_unit[unit] = UnitRows(own, fresh)
        return [each for each in by_unit if each is not None]

    def _answers(self, asked: Asked, found: Sequence[UnitRows], now: int) -> list[bytes]:
        fresh = _concatenated("fresh", [each.fresh for each in found], np.int32)
        ends = np.cumsum(asked.counts, axis=0)
        messages = []
        for process in range(self._count):
            start, end = ends[process] - asked.counts[process], ends[process]
            own = [x.rows[i:j] for x, i, j in zip(found, start, end, strict=True)]
            rows = np.concatenate([np.zeros(0, np.int32), *own])
            messages.append(packed({"now": np.array([now], np.int64), "rows": rows, **fresh}))
        return messages

    def gather(self, own: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """The arrays of all units, in every process.

        Args:
            own: arrays by name of each unit that is here.
        """
        if self._exchange is None:
            return [dict(each) for each in own]
        units = self.owned()
        named = {
            f"{unit} {name}": array
            for unit, each in zip(units, own, strict=True)
            for name, array in each.items()
        }
        found: list[dict[str, np.ndarray]] = [{} for _ in range(self._units)]
        for message in self._share([packed(named)] * self._count):
            for key, array in message.items():
                unit, name = key.split(" ")
                found[int(unit)][name] = array
        return found

    def _share(
        self, messages: Sequence[bytes], own: UserError | None = None
    ) -> list[dict[str, np.ndarray]]:
        """The messages of all processes; the error of the first that has one is raised."""
        assert self._exchange
        received = [unpacked(each) for each in self._exchange.all_to_all(messages)]
        failed = [process for process, each in enumerate(received) if _ERROR in each]
        if failed:
            if own and failed[0] == self._index:
                raise own
            raise UserError(received[failed[0]][_ERROR].tobytes().decode())
        return received


def _failed(error: UserError) -> bytes:
    return packed({_ERROR: np.frombuffer(str(error).encode(), np.uint8)})


def _concatenated(
    name: str, arrays: Sequence[np.ndarray], dtype: type[np.generic]
) -> dict[str, np.ndarray]:
    """Arrays one after the other, with their lengths."""
    lengths = np.array([len(x) for x in arrays], np.int64)
    return {name: np.concatenate([np.zeros(0, dtype), *arrays]), f"{name} lengths": lengths}


def _split(name: str, message: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The arrays of `_concatenated`."""
    lengths = message[f"{name} lengths"]
    return np.split(message[name], np.cumsum(lengths)[:-1]) if len(lengths) else []
