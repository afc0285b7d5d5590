"""Writes deltas to the chain of the newest base in a thread, and new bases in another one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from dlrm_jax.artifact.delta import DeltaNote, Rows, write_delta
from dlrm_jax.artifact.delta_chain import delta_path
from dlrm_jax.artifact.row_formats import encode
from dlrm_jax.console import status
from dlrm_jax.dynamic_ids.keys import KeyChanges, Keys
from dlrm_jax.errors import DamagedArtifactError, UserError
from dlrm_jax.files import creating
from dlrm_jax.publishing.compaction import compact
from dlrm_jax.publishing.published import Published, bases_in, delete_base
from dlrm_jax.training.touched_rows import Numbers

_BASES = 2
"""Bases that are kept: a server may be about to load the one before the last."""

_LEAST = 16
"""Deltas that are never too large together: small tables change as a whole in each."""

_AGAIN = 16
"""Deltas after which a new base is tried again."""


class Taken(NamedTuple):
    """A state on the host, of which a delta is to be written.

    Attributes:
        step: number of training steps.
        time: time when it was taken, in seconds since 1970.
        numbers: numbers of the changed rows by table.
        rows: these rows as they were trained.
        layers: arrays of the dense model, in the order of manifests.
        keys: ids of all rows by map.
        changes: changes of them since the last publication.
    """

    step: int
    time: float
    numbers: Numbers
    rows: Mapping[str, np.ndarray]
    layers: Mapping[str, np.ndarray]
    keys: Mapping[str, Keys]
    changes: Mapping[str, KeyChanges]


class DeltaWriter:
    """The newest base and its deltas. A context manager, whose end waits for the threads.

    Args:
        share: a new base is made when 16 deltas or more have more bytes than this share of the
            tables of the base.
        deltas: a new base is made after so many deltas.

    Attributes:
        published: newest base and its chain; None before there is one.
    """

    def __init__(self, share: float, deltas: int):
        self.published: Published | None = None
        self._share, self._deltas = share, deltas
        self._again = 0  # number of the first delta after which a new base may be tried
        self._lock = threading.Lock()  # of the chain
        self._compacting: Future[None] | None = None
        self._has_failed = False  # the new base that was tried last
        self._stack = contextlib.ExitStack()
        self._writer = self._stack.enter_context(ThreadPoolExecutor(1, "publisher"))
        self._compactor = self._stack.enter_context(ThreadPoolExecutor(1, "compaction"))

    def __enter__(self) -> DeltaWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def submit(self, taken: Taken) -> Future[None]:
        """Has a delta written; one at a time."""
        return self._writer.submit(self._write, taken)

    def _write(self, taken: Taken) -> None:
        published = self.published
        assert published
        formats = {x.name: x.row_format for x in published.manifest.tables}
        rows: dict[str, Rows] = {
            name: (numbers, encode(taken.rows[name].astype(np.float32), formats[name]))
            for name, numbers in taken.numbers.items()
        }
        for name, array in taken.layers.items():
            if not np.isfinite(array.astype(np.float32)).all():
                raise UserError(f"expected finite numbers, layer {name} has others")
        with self._lock:
            assert self.published
            chain = self.published.chain  # that of a new base, if there is one by now
            number = chain.number + 1
            note = DeltaNote(number, taken.step, taken.time, chain.base, chain.before, (), {})
            with creating(delta_path(chain.directory, number)) as directory:
                directory.mkdir()
                keys = taken.changes if taken.keys else None
                note, content = write_delta(directory, note, rows, taken.layers, keys)
            chain.append(note, content)

    def compact_if_due(self, wait: bool = False) -> Published | None:
        """Begins a new base if the deltas are many or large, and warns of one that has failed.

        No delta may be being written.

        Args:
            wait: whether to wait for one that was begun, and begin none.

        Returns:
            What was published, if it has turned out to be damaged: it isn't gone on with.
        """
        if self._compacting and (wait or self._compacting.done()):
            compacting, self._compacting = self._compacting, None
            try:
                compacting.result()
            except DamagedArtifactError as error:
                text = f"warning: publish: a new base of the whole state follows: {error}"
                status(text, error=True)
                damaged, self.published, self._again = self.published, None, 0
                return damaged
            except (UserError, OSError) as error:
                if not self._has_failed:
                    text = f"warning: publish: deltas go on without a new base: {error}"
                    status(text, error=True)
                self._has_failed = True
            else:
                self._has_failed = False
        if wait or self._compacting or self.published is None:
            return None
        _, manifest, chain = self.published
        size = sum(manifest.files[table.file].bytes for table in manifest.tables)
        is_large = chain.number >= _LEAST and chain.bytes > self._share * size
        if (is_large or chain.number >= self._deltas) and chain.number >= self._again:
            self._again = chain.number + _AGAIN
            self._compacting = self._compactor.submit(self._compact, self.published, chain.number)
        return None

    def _compact(self, published: Published, last: int) -> None:
        def done(new: Published) -> None:
            self.published, self._again = new, 0

        compact(published, last, self._lock, done)
        delete_old(published.directory.parent)


def delete_old(directory: Path) -> None:
    """Deletes all bases of a directory but the newest, and their deltas."""
    for base in bases_in(directory)[:-_BASES]:
        delete_base(base)
