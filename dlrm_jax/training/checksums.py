"""Checksums of the arrays of a checkpoint: written with it, and compared with what is loaded.

A checksum depends on an array's numbers, dtype and shape alone, not on mesh or plan. Each process
sums what its devices have, see `embedding.checksum`. The sums of all processes are exchanged once,
so all reach the same verdict.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, UInt32

from dlrm_jax.backend import backend_named
from dlrm_jax.embedding.checksum import checksum, checksum_on_host, place
from dlrm_jax.errors import DamagedCheckpointError
from dlrm_jax.processes import gathered, is_distributed

# Parts of so many bytes are summed on their device, smaller ones by NumPy: that takes 0.02 s for
# them, and a program for each shape of them 0.3 s of compilation.
_ON_DEVICE_BYTES = 2**24

_EXCHANGED_BYTES = 2**24  # of the sums that processes exchange at a time

Sums = dict[int, UInt32[np.ndarray, "2"]]
"""The sum of this process's parts of each copy of an array, by the number of the copy."""


class SavedSums:
    """Checksums of the arrays that are written; each is read when it is added."""

    def __init__(self):
        self._sums: dict[str, tuple[str, Sums]] = {}

    def add(self, name: str, array: Array | np.ndarray) -> None:
        """Sums an array. Of copies, the first one counts, which is the one that is written."""
        self._sums[name] = (str(array.dtype), _sums(array, copies=1))

    def metadata(self) -> dict[str, str]:
        """The part of the metadata: by name, dtype and checksum. All processes call it together."""
        totals = _totals([sums for _, sums in self._sums.values()], together=True)
        return {
            name: f"{dtype} {_as_text(total[0])}"
            for (name, (dtype, _)), total in zip(self._sums.items(), totals, strict=True)
        }


class LoadedSums:
    """Checksums of the arrays that are loaded from one checkpoint, compared with the saved ones.

    Args:
        path: directory of the checkpoint.
        metadata: result of `metadata.read_metadata`. Earlier versions noted no checksums: then
            nothing is summed or compared.
    """

    def __init__(self, path: Path, metadata: Mapping[str, Any]):
        self._path = path
        self._expected: Mapping[str, str] | None = metadata.get("checksums")
        self._sums: dict[str, Sums] = {}

    def dtype(self, name: str, otherwise: np.dtype) -> np.dtype:
        """The dtype that an array was saved in; another one if that isn't known."""
        noted = (self._expected or {}).get(name)
        return jnp.dtype(noted.split()[0]) if noted else otherwise

    def add(self, name: str, array: Array | np.ndarray) -> None:
        """Sums an array, in the dtype that it was saved in."""
        if self._expected is not None:
            self._sums[name] = _sums(array, copies=None)

    def check(self, together: bool = True) -> None:
        """Compares the checksums.

        Args:
            together: whether all processes call it, each with the same arrays.

        Raises:
            DamagedCheckpointError: an array, or one of its copies, isn't the one that was saved.
        """
        if self._expected is None:
            return
        totals = _totals(list(self._sums.values()), together)
        for name, copies in zip(self._sums, totals, strict=True):
            noted = self._expected.get(name)
            if noted is None:
                raise DamagedCheckpointError(
                    str(self._path), f"its metadata.json has no checksum of {name}"
                )
            if any(_as_text(total) != noted.split()[1] for total in copies):
                raise DamagedCheckpointError(
                    str(self._path), f"the numbers of {name} aren't those that were saved"
                )


def _as_text(total: UInt32[np.ndarray, "2"]) -> str:
    return "".join(f"{word:08x}" for word in total.tolist())


def _sums(array: Array | np.ndarray, copies: int | None) -> Sums:
    """The sum of this process's parts of each copy; of the first ``copies``, or of all.

    An array of NumPy is whole in every process: a copy for each.
    """
    if isinstance(array, np.ndarray):
        return {jax.process_index(): checksum_on_host(array)}
    own = [x for x in array.addressable_shards if copies is None or x.replica_id < copies]
    on_devices = _is_for_devices(array)
    by_device = _sums_on_devices(array) if on_devices else {}
    found: Sums = {}
    for part in own:
        if on_devices:
            total = by_device[part.device]
        else:
            first = place(*(np.uint32(index.start or 0) for index in part.index))
            total = checksum_on_host(np.asarray(part.data), first)
        found[part.replica_id] = found.get(part.replica_id, np.zeros(2, np.uint32)) + total
    return found


def _is_for_devices(array: Array) -> bool:
    size = math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
    if size < _ON_DEVICE_BYTES:
        return False
    # NumPy needs no copy of short floats.
    is_short = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
    [platform] = {device.platform for device in array.sharding.device_set}
    return not (is_short and backend_named(platform).widens_short_floats)


def _sums_on_devices(array: Array) -> dict[Any, UInt32[np.ndarray, "2"]]:
    """The sum of the part on each device of this process; nothing is moved between devices."""
    if isinstance(array.sharding, NamedSharding):
        sums = _program(array.sharding.mesh, array.sharding.spec)(array)
    else:
        assert len(array.sharding.device_set) == 1
        sums = _on_one_device(array)
    return {part.device: np.asarray(part.data).reshape(2) for part in sums.addressable_shards}


_on_one_device = jax.jit(checksum)


@functools.lru_cache(maxsize=64)
def _program(mesh: Mesh, spec: PartitionSpec) -> jax.stages.Wrapped:
    def run(part: Array) -> UInt32[Array, "1 2"]:
        starts = [
            jax.lax.axis_index(axes).astype(jnp.uint32) * np.uint32(size % 2**32) if axes else 0
            for axes, size in zip(spec, part.shape[: len(spec)], strict=True)
        ]
        return checksum(part, place(*map(jnp.uint32, starts)))[None]

    each = PartitionSpec(mesh.axis_names)
    # The check doesn't know that sums of parts differ, though they begin with equal zeros.
    return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=each, check_vma=False))


def _totals(arrays: list[Sums], together: bool) -> list[UInt32[np.ndarray, "copies 2"]]:
    """The checksum of each copy of each array, over the parts in all processes."""
    found = np.zeros((len(arrays), jax.device_count(), 3), np.uint32)
    for number, sums in enumerate(arrays):
        for copy, total in sums.items():
            found[number, copy] = [*total, 1]
    if together and is_distributed() and found.size:
        # Every device gets the sums of all processes: a few arrays at a time.
        count = max(1, _EXCHANGED_BYTES // (found[0].nbytes * jax.process_count()))
        found = np.concatenate(
            [
                gathered(found[start : start + count]).sum(axis=0, dtype=np.uint32)
                for start in range(0, len(arrays), count)
            ]
        )
    return [copies[copies[:, 2] > 0, :2] for copies in found]
