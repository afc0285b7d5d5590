"""Tables with dynamic ids that have other rows or parts than in the checkpoint of their run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlrm_jax.dynamic_ids.id_maps import IdMaps
from dlrm_jax.dynamic_ids.resizing import Resized, resized
from dlrm_jax.embedding import Table
from dlrm_jax.training.checksums import LoadedSums
from dlrm_jax.training.continuing import grown_rows
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.saved_id_maps import NAME, Arrays, policy_of
from dlrm_jax.training.serialization import load_rows


class ResizedMaps:
    """The maps of a checkpoint for a run whose tables may have other numbers of rows or parts.

    Args:
        maps: maps of the run; None without dynamic ids.
        saved: arrays of each map, see `saved_id_maps.load_id_maps`.
        metadata: result of `metadata.read_metadata`.
    """

    def __init__(
        self, maps: IdMaps | None, saved: Mapping[str, Arrays], metadata: Mapping[str, Any]
    ):
        self._saved, self._rows = saved, maps.rows if maps else {}
        self._changes: dict[str, Resized] = {}
        self._parts: dict[str, tuple[str, str]] = {}
        self._of_table: dict[str, Resized] = {}
        for name, tables in (maps.tables if maps else {}).items():
            ids, rows = tables[0].ids, tables[0].rows
            assert ids is not None
            parts = policy_of(metadata, name).parts
            if (len(saved[name]["keys"]), parts) != (rows, ids.parts):
                self._changes[name] = change = resized(ids, saved[name], rows, parts)
                if parts != ids.parts:
                    self._parts[name] = _in_parts(ids.parts), _in_parts(parts)
                self._of_table |= {table.name: change for table in tables}

    @property
    def arrays(self) -> dict[str, Arrays]:
        """The arrays of each map, for `IdMaps.load`."""
        return {**self._saved, **{name: x.arrays for name, x in self._changes.items()}}

    def lines(self, checkpoint: str) -> Iterator[str]:
        """A line for people on each map that has changed.

        Args:
            checkpoint: name of the checkpoint.
        """
        for name, change in self._changes.items():
            before = self._saved[name]["counts"]
            ids = np.count_nonzero(before)
            now, was = self._parts.get(name, ("", ""))
            yield (
                f"ids of table {name}: {self._rows[name]:,} rows{now}, {len(before):,}{was} in "
                f"checkpoint {checkpoint}; {change.lost:,} of {ids:,} ids lose their rows"
            )

    def load_table(
        self,
        learner: Learner,
        path: Path,
        metadata: Mapping[str, Any],
        table: Table,
        sums: LoadedSums,
    ) -> Mapping[str, Any]:
        """Reads a table with its optimizer state, for `EmbeddingCollection.from_arrays`.

        With more rows than before, the last ones are those of a new table, made on the mesh. With
        fewer, or of a map in parts, the table comes by the memory of the host.

        Args:
            learner: learner of the run.
            path: directory of the checkpoint.
            metadata: result of `metadata.read_metadata`.
            table: table of the run.
            sums: checksums of what is loaded; call its ``check`` when all is.

        Raises:
            OtherShapeError: the checkpoint has no such table, or one of another shape.
        """
        specs = learner.collection.array_specs(table.name)
        change = self._of_table.get(table.name)
        if change is None:
            return load_rows(path, metadata, table.name, specs, sums)
        if len(change.source) < table.rows:
            seed = int(change.arrays["numbers"][3])  # the run's, as is that of its maps
            return grown_rows(learner, seed, path, metadata, table, sums)
        before = rows_before(metadata, table.name)
        whole = {
            key: np.broadcast_to(np.zeros((), x.dtype), (before, *x.shape[1:]) if x.shape else ())
            for key, x in specs.items()
        }
        arrays = load_rows(path, metadata, table.name, whole, sums)
        found = {key: np.asarray(array) for key, array in arrays.items()}
        return {key: x[change.source] if x.ndim else x for key, x in found.items()}


def _in_parts(count: int) -> str:
    return " in one part" if count == 1 else f" in {count} parts"


def rows_before(metadata: Mapping[str, Any], table: str) -> int:
    """The rows that a table with dynamic ids has in a checkpoint.

    Args:
        metadata: result of `metadata.read_metadata`.
        table: name of the table.
    """
    own = metadata[NAME].values()
    (rows,) = (x["arrays"]["keys"]["shape"][0] for x in own if table in x["tables"])
    return rows


def is_resized(metadata: Mapping[str, Any], maps: IdMaps) -> bool:
    """Whether a table has another number of rows or parts than in a checkpoint.

    Args:
        metadata: result of `metadata.read_metadata`.
        maps: maps of the run.
    """
    return any(
        (rows_before(metadata, name), policy_of(metadata, name).parts) != (own.rows, own.count)
        for name, own in ((name, x.rows) for name, x in maps.maps.items())
    )
