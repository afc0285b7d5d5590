"""An artifact, mapped: logits of examples with ids, without a class, a config or a compiler."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int

from dlrm_jax.artifact.dense_note import Precision
from dlrm_jax.artifact.dense_program import DenseProgram
from dlrm_jax.artifact.files import as_damage, check_content, check_present
from dlrm_jax.artifact.id_rows import IdRows
from dlrm_jax.artifact.manifest import Manifest
from dlrm_jax.artifact.native_dense import native_dense
from dlrm_jax.artifact.notes import LayerNote
from dlrm_jax.artifact.row_pooling import RowPooling
from dlrm_jax.artifact.shared_pooling import SharedPooling
from dlrm_jax.artifact.tables import map_lookups
from dlrm_jax.backend import CPU, devices
from dlrm_jax.data.formats.npy import map_npy, write_npy
from dlrm_jax.errors import DamagedArtifactError, UserError
from dlrm_jax.native.dense_model import DenseModel

# The activations of more examples fall out of a CPU's caches: with the tables and layers of `small`
# on two busy cores, 8192 examples took 84 ms at once, 26 in chunks of 512 and 33 in those of 128.
_CPU_CHUNK = 512
_CHUNK = 8192  # of accelerators
_NATIVE_CHUNK = 8192  # whose vectors are in memory; activations are those of a block
_ABSENT = -1  # an id that adds nothing


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A model that predicts.

    Attributes:
        directory: directory of the artifact.
        manifest: description.
        lookups: lookups in the tables, which are mapped.
        layers: arrays of the dense model by name, on the default device.
        programs: dense model by batch size; under None for any.
        native: dense model by native kernels, which is used in place of a program; None for a
            model that they don't have, for accelerators, and where they aren't built.
        id_rows: function that gives ids their rows; None if ids are rows.
    """

    directory: Path
    manifest: Manifest
    lookups: RowPooling
    layers: Mapping[str, Any]
    programs: Mapping[int | None, DenseProgram]
    native: DenseModel | None = None
    id_rows: IdRows | None = None

    def __repr__(self) -> str:
        """One line, without the arrays."""
        formats = ", ".join(dict.fromkeys(x.row_format for x in self.manifest.tables))
        tables = len(self.manifest.tables)
        precision = self.precision
        layers = "" if precision == "float32" else f" in {precision}"
        layers += " by native kernels" if self.native else ""
        layers = layers and f", layers{layers}"
        return f"artifact {self.manifest.name} of {tables} tables in {formats}{layers}"

    @property
    def precision(self) -> Precision:
        """The precision of the layers; float32 for models without a note of them."""
        note = self.manifest.dense_layers
        return note.precision if note else "float32"

    @classmethod
    def load(cls, directory: Path | str) -> Artifact:
        """Maps the tables and reads the dense model.

        All files are looked for and have their size; layers, programs and keys their checksum.
        Tables and vocabularies aren't read: `verify` does that.

        Raises:
            UserError: there is no artifact, or a later version wrote it.
            DamagedArtifactError: a file is missing or isn't as it was written.
        """
        devices()  # without any, JAX may end without a word
        directory = Path(directory)
        manifest = Manifest.read(directory)
        check_present(directory, manifest.files)
        for note in (*manifest.layers, *manifest.programs):
            check_content(directory, note.file, manifest.files[note.file])
        with as_damage(directory):
            return cls.open(directory, manifest)

    @classmethod
    def open(cls, directory: Path, manifest: Manifest) -> Artifact:
        """Maps and reads the files of a manifest, which are there; see `load`."""
        lookups = map_lookups(directory, manifest.tables, manifest.lookups)
        arrays = {note.name: read_layer(directory, note) for note in manifest.layers}
        check_quantizations(directory, manifest, arrays)
        layers = {name: jnp.asarray(array) for name, array in arrays.items()}
        programs = read_programs(directory, manifest)
        native = native_dense(manifest, layers, lookups)
        id_rows = IdRows.read(directory, manifest)
        return cls(directory, manifest, lookups, layers, programs, native, id_rows)

    @functools.cached_property
    def batch_sizes(self) -> tuple[int, ...]:
        """The numbers of examples that a program is compiled for when it is needed, ascending.

        Powers of two, so that a few examples aren't filled up to many. None if no program is used.
        """
        if self.native:
            return ()
        largest = _CPU_CHUNK if jax.default_backend() == CPU.platform else _CHUNK
        if None in self.programs:
            return tuple(2**i for i in range(largest.bit_length()))
        known = sorted(size for size in self.programs if size is not None)
        return tuple(size for size in known if size <= largest) or (known[0],)

    def rows_of(self, ids: Int[np.ndarray, "B C"]) -> Int[np.ndarray, "B C"]:
        """The rows of ids in the tables; negative is absent."""
        return ids if self.id_rows is None else self.id_rows(ids)

    def logits(
        self,
        dense: Float32[np.ndarray, "B D"],
        ids: Int[np.ndarray, "B C"],
        id_weights: Float32[np.ndarray, "B C"] | None = None,
        shared: Collection[str] = (),
    ) -> Float32[np.ndarray, "B *_"]:
        """The logits of examples, [B] or [B, H], without the shift.

        Rows of tables are read while a program works on the chunk before.

        Args:
            dense: dense features.
            ids: ids of all features side by side; negative is absent. Of a stream's model they have
                64 bits, see `IdRows`.
            id_weights: weights of the ids; None if all are 1.
            shared: features whose bags are the same in all examples; they are looked up once.

        Raises:
            UserError: an id isn't a row of its table, or the arrays don't fit.
        """
        expected = (len(ids), self.manifest.dense_features)
        if dense.shape != expected or dense.dtype != np.float32:
            raise UserError(
                f"dense: expected float32 of shape {expected}, got {dense.dtype} of shape "
                f"{dense.shape}"
            )
        if not len(dense):
            labels = self.manifest.outputs
            return np.zeros((0, labels) if labels > 1 else (0,), np.float32)
        ids, lookups, outputs = self.rows_of(ids), self._lookups(shared), []
        if self.native:
            return self._native_logits(self.native, lookups, dense, ids, id_weights)
        for first in range(0, len(dense), self.batch_sizes[-1]):
            count = min(len(dense) - first, self.batch_sizes[-1])
            size = self.batch_sizes[bisect.bisect_left(self.batch_sizes, count)]
            own = slice(first, first + count)
            weights = None if id_weights is None else _filled(id_weights[own], size, 0)
            vectors = lookups(_filled(ids[own], size, _ABSENT), weights)
            program = self.programs.get(None) or self.programs[size]
            outputs.append(program(self.layers, _filled(dense[own], size, 0), vectors))
        logits = [np.asarray(x) for x in outputs]
        return (logits[0] if len(logits) == 1 else np.concatenate(logits))[: len(dense)]

    def _native_logits(
        self,
        native: DenseModel,
        lookups: RowPooling | SharedPooling,
        dense: Float32[np.ndarray, "B D"],
        ids: Int[np.ndarray, "B C"],
        id_weights: Float32[np.ndarray, "B C"] | None,
    ) -> Float32[np.ndarray, " B"]:
        """As `logits`, by native kernels."""
        logits = np.empty(len(dense), np.float32)
        for first in range(0, len(dense), _NATIVE_CHUNK):
            own = slice(first, first + _NATIVE_CHUNK)
            vectors = lookups(ids[own], None if id_weights is None else id_weights[own])
            features = np.ascontiguousarray(dense[own], np.float32)
            native(features, vectors, logits[own], self.lookups.threads)
        return logits

    def _lookups(self, shared: Collection[str]) -> RowPooling | SharedPooling:
        """The lookups, those of shared features once."""
        names = {x.name for x in self.manifest.lookups if x.feature in shared}
        return SharedPooling(self.lookups, names) if names else self.lookups


def _filled(array: np.ndarray, size: int, value: int) -> np.ndarray:
    """An array with as many rows as a program takes."""
    if len(array) == size:
        return array
    filled = np.full((size, *array.shape[1:]), value, array.dtype)
    filled[: len(array)] = array
    return filled


def read_layer(directory: Path, note: LayerNote) -> np.ndarray:
    """An array of the dense model.

    Raises:
        DamagedArtifactError: it has another shape or type than the manifest says.
    """
    try:
        array, dtype = map_npy(directory / note.file), jnp.dtype(note.dtype)
    except (UserError, TypeError) as error:
        raise DamagedArtifactError(str(directory), note.file, str(error)) from error
    if dtype == jnp.bfloat16 and array.dtype == np.uint16:
        array = array.view(dtype)
    if array.shape != note.shape or array.dtype != dtype:
        raise DamagedArtifactError(
            str(directory),
            note.file,
            f"expected {note.dtype} of shape {[*note.shape]}, it has {array.dtype} of shape "
            f"{[*array.shape]}",
        )
    return np.array(array)


def check_quantizations(
    directory: Path, manifest: Manifest, arrays: Mapping[str, np.ndarray]
) -> None:
    """Checks the numbers by which layers in int8 compute.

    Raises:
        DamagedArtifactError: they aren't scales, levels and zero points.
    """
    files = {note.name: note.file for note in manifest.layers}
    for own in manifest.dense_layers.quantizations if manifest.dense_layers else ():
        for name in (own.scale, own.levels):
            found = arrays[name]
            if not np.all(np.isfinite(found) & (found > 0)):
                raise DamagedArtifactError(
                    str(directory), files[name], "expected finite numbers above 0"
                )
        if not -128 <= (zero := int(arrays[own.zero][0])) <= 127:
            raise DamagedArtifactError(
                str(directory),
                files[own.zero],
                f"expected a number from -128 to 127, it has {zero}",
            )


def write_layer(path: Path, array: np.ndarray) -> None:
    """Writes an array of the dense model; bfloat16, which NumPy doesn't know, as its bits."""
    write_npy(path, array.view(np.uint16) if array.dtype == jnp.bfloat16 else array)


def read_programs(directory: Path, manifest: Manifest) -> dict[int | None, DenseProgram]:
    """The programs of an artifact, by batch size.

    Raises:
        DamagedArtifactError: one can't be read, or isn't a function of the artifact's arrays.
    """
    layers = {note.name: (note.shape, note.dtype) for note in manifest.layers}
    width = sum(map(math.prod, manifest.vector_shapes.values()))
    found = {}
    for note in manifest.programs:
        try:
            program = DenseProgram.read((directory / note.file).read_bytes())
            dense, labels = manifest.dense_features, manifest.outputs
            program.check(note.batch_size, layers, dense, width, labels)
        except UserError as error:
            raise DamagedArtifactError(str(directory), note.file, str(error)) from error
        found[note.batch_size] = program
    return found


def split_vectors(
    shapes: Mapping[str, tuple[int, ...]], vectors: Float32[Any, "B W"]
) -> dict[str, Float32[Any, "B *_"]]:
    """The vectors of each lookup, of those of all side by side.

    Args:
        shapes: shape of an example's vectors by lookup.
        vectors: vectors of all lookups; JAX's while a program is made of it.
    """
    found, first = {}, 0
    for name, shape in shapes.items():
        last = first + math.prod(shape)
        found[name] = vectors[:, first:last].reshape(vectors.shape[0], *shape)
        first = last
    return found
