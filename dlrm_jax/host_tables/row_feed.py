"""The rows that batches read, brought to the devices before them, and back when others come.

One thread prepares batches and finds out which rows move; another one moves them, right before the
step of their batch. A row that leaves for a batch has the updates of all batches before it, since
devices give it back behind their steps. The preparing thread may be some batches ahead. If a row
comes back before its values are on the host, they are awaited right before its batch.
"""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from dlrm_jax.data.batches import Batch, Batches
from dlrm_jax.dynamic_ids.id_columns import MapGroup
from dlrm_jax.embedding import EmbeddingState
from dlrm_jax.embedding.row_swaps import PlacedRows
from dlrm_jax.errors import UserError
from dlrm_jax.host_tables.cache_map import CacheMap, Exchange
from dlrm_jax.host_tables.cached_collection import CachedCollection


@dataclasses.dataclass
class Traffic:
    """The rows and bytes that have moved for the batches that were begun.

    Attributes:
        batches: number of batches.
        read: different rows of each batch, summed, by table that names a cache map.
        missed: number of them that weren't in the cache.
        to_devices: bytes of values that were sent to the devices, padding included.
        to_host: bytes of values that came back.
    """

    batches: int = 0
    read: dict[str, int] = dataclasses.field(default_factory=dict)
    missed: dict[str, int] = dataclasses.field(default_factory=dict)
    to_devices: int = 0
    to_host: int = 0

    def count(self, name: str, exchange: Exchange) -> None:
        """Counts the rows of a batch in one cache."""
        self.read[name] = self.read.get(name, 0) + exchange.read
        self.missed[name] = self.missed.get(name, 0) + len(exchange.coming)

    def summary(self) -> dict[str, Any]:
        """Hit rates by table and bytes per batch."""
        return {
            "hit_rate": {x: 1 - self.missed[x] / max(self.read[x], 1) for x in self.read},
            "bytes_to_devices_per_step": self.to_devices / max(self.batches, 1),
            "bytes_to_host_per_step": self.to_host / max(self.batches, 1),
        }


class _Prepared(NamedTuple):
    """The exchanges of a batch.

    Attributes:
        exchanges: exchange of each cache map, in the order of the groups.
        placed: rows that come, on the devices; None if some of them are on their way to the host.
    """

    exchanges: list[Exchange]
    placed: Mapping[str, PlacedRows] | None


class RowFeed:
    """Feeds the caches of a collection, batch by batch.

    Args:
        collection: collection, whose last state is fed.
        writes_back: whether batches change rows. Otherwise rows of the caches must come from a
            state of their own, see `copied`, and the host's rows stay as they are.
        half_life: see `Replacement`.
    """

    def __init__(self, collection: CachedCollection, writes_back: bool = True, **half_life: float):
        self._collection, self._writes_back = collection, writes_back
        host = self._host = collection.host
        host.land()
        self._maps = [
            CacheMap(
                name := group.tables[0],
                collection.whole[name].rows,
                host.cached[name],
                writes_back,
                **half_life,
            )
            for group in collection.groups
        ]
        self._number = self._begun = 0
        self._prepared: collections.deque[_Prepared] = collections.deque()
        self._lock = threading.Lock()
        self.traffic = Traffic()

    def prepare(self, ids: Int32[np.ndarray, "B C"]) -> Int32[np.ndarray, "B C"]:
        """The places of the next batch's ids in the caches.

        Args:
            ids: ids of the batch, -1 for none; those of tables in host memory are their rows.

        Raises:
            UserError: see `CacheMap.exchange`; after that, no batch can be prepared.
        """
        found, number = ids.copy(), self._number
        exchanges = []
        for group, places in zip(self._collection.groups, self._maps, strict=True):
            own = ids[:, group.columns]
            present = own != -1
            rows = own[present]
            with self._lock:
                exchanges.append(places.exchange(number, rows))
                own[present] = places.places(rows)
            found[:, group.columns] = own
        placed = self._placed(exchanges) if _last_left(exchanges) < 0 else None
        self._prepared.append(_Prepared(exchanges, placed))
        self._number += 1
        return found

    def begin(self, state: Any, step: int = 0) -> Any:
        """The state with which a batch is trained on or predicted: with its rows in the caches.

        Batches begin in the order in which they were prepared.

        Args:
            state: state before the batch, with an ``embedding``; what is fed is donated.
            step: number of updates before the batch; it isn't read.
        """
        del step
        exchanges, placed = self._prepared.popleft()
        if placed is None:
            self._host.land(_last_left(exchanges))
            placed = self._placed(exchanges)
        embedding, old = self._collection.swap_rows(state.embedding, placed)
        going: dict[str, Any] = {}
        for group, exchange in zip(self._collection.groups, exchanges, strict=True):
            self.traffic.count(group.tables[0], exchange)
            if not len(exchange.coming):
                continue
            going |= dict.fromkeys(group.tables, exchange.going)
            if self._writes_back:  # the tables of a group share the array
                self._host.cached[group.tables[0]][exchange.places] = exchange.coming
        moved = sum(x.nbytes for x in placed.values())
        self.traffic.batches += 1
        self.traffic.to_devices += moved
        if going and self._writes_back:
            self.traffic.to_host += moved
            number = self._begun

            def landed() -> None:
                with self._lock:
                    for places, exchange in zip(self._maps, exchanges, strict=True):
                        places.back(number, exchange.going)

            self._host.expect(number, going, old, landed)
        self._begun += 1
        return dataclasses.replace(state, embedding=embedding)

    def _placed(self, exchanges: list[Exchange]) -> dict[str, PlacedRows]:
        """The rows that come, from the host to their places on the devices."""
        coming, places = {}, {}
        pairs: zip[tuple[MapGroup, Exchange]] = zip(self._collection.groups, exchanges, strict=True)
        for group, exchange in pairs:
            if len(exchange.coming):
                coming |= dict.fromkeys(group.tables, exchange.coming)
                places |= dict.fromkeys(group.tables, exchange.places)
        return self._collection.place_rows(places, self._host.read(coming, self._writes_back))

    def copied(self, state: Any) -> Any:
        """The state with copies of the caches, which may be donated while the state is kept.

        A row that leaves such a cache isn't written back, and comes again from the host, which
        therefore gets the rows of the caches first.
        """
        self._collection.write_back(state.embedding)
        tables = dict(state.embedding.tables)
        for name in {self._collection.layout.slab_of(x).name for x in self._collection.whole}:
            tables[name] = jax.jit(jnp.copy, out_shardings=tables[name].sharding)(tables[name])
        embedding: EmbeddingState = dataclasses.replace(state.embedding, tables=tables)
        return dataclasses.replace(state, embedding=embedding)

    def stop(self) -> None:
        """Nothing: no thread waits for another one."""


def _last_left(exchanges: list[Exchange]) -> int:
    """The last exchange in which a row left that comes now; -1 if all are on the host."""
    return int(max(exchange.left_in.max(initial=-1) for exchange in exchanges))


class FedBatches:
    """Training batches whose ids are places in caches, each after the one before.

    Args:
        batches: batches of ids by step.
        feed: feed of the training.
    """

    def __init__(self, batches: Batches, feed: RowFeed):
        self.steps_per_epoch, self.batch_size = batches.steps_per_epoch, batches.batch_size
        self._batches, self._feed = batches, feed

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step. Steps come in order.

        Raises:
            UserError: see `RowFeed.prepare`; the message names the step.
        """
        batch = self._batches[step]
        try:
            return batch._replace(ids=self._feed.prepare(np.asarray(batch.ids)))
        except UserError as error:
            raise UserError(f"the batch of step {step + 1}: {error}") from error
