"""Arrays of a trained model as files of a directory, and the signed manifest beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from flax import nnx

from dlrm_jax.artifact.files import check_content, check_present, read_array
from dlrm_jax.artifact.manifest import MANIFEST
from dlrm_jax.artifact.notes import FileNote
from dlrm_jax.artifact.signed_text import is_signed
from dlrm_jax.data.formats.npy import write_npy
from dlrm_jax.errors import DamagedArtifactError, UserError

Noted = TypeVar("Noted")


@dataclasses.dataclass(frozen=True)
class _Kind:
    format: int
    kind: str = ""  # of artifacts of rows and of two towers


def write_arrays(directory: Path, kind: str, arrays: Mapping[str, Any]) -> dict[str, str]:
    """Writes arrays, and returns the file of each by its name.

    Args:
        directory: directory of the model.
        kind: first part of the files' names.
        arrays: arrays by name.
    """
    files = {name: f"{kind}_{number}.npy" for number, name in enumerate(arrays)}
    for name, array in arrays.items():
        write_npy(directory / files[name], np.asarray(array))
    return files


def layers_of(model: nnx.Module) -> dict[str, np.ndarray]:
    """The parameters of a model by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(model, nnx.Param))
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def load_layers(model: nnx.Module, directory: Path, files: Mapping[str, str]) -> None:
    """Gives a model the parameters of a directory.

    Args:
        model: model that was made of the directory's settings.
        directory: directory of the model.
        files: file of each parameter by its path.

    Raises:
        DamagedArtifactError: they aren't those of the model, or a file can't be read.
    """
    wanted = {name: x.shape for name, x in layers_of(model).items()}
    if wanted.keys() != files.keys():
        raise DamagedArtifactError(
            str(directory), MANIFEST, "its layers aren't those of its settings"
        )
    layers = {
        name: read_array(directory, files[name], np.float32, shape)
        for name, shape in wanted.items()
    }
    own = jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(layers[jax.tree_util.keystr(path)]),
        nnx.state(model, nnx.Param),
    )
    nnx.update(model, own)


def read_noted(directory: Path, kind: str, most: int, noted: type[Noted]) -> Noted:
    """The manifest of a model.

    Args:
        directory: directory of the model.
        kind: kind that is expected.
        most: latest format that is known.
        noted: type of the manifest.

    Raises:
        UserError: there is none, or it is of another kind or of a later format.
        DamagedArtifactError: it isn't as it was written.
    """
    path = directory / MANIFEST
    try:
        content = path.read_bytes()
        found = msgspec.json.decode(content, type=_Kind)
        if found.kind != kind:
            raise UserError(
                f"{path}: expected a model of kind {kind}, got one of kind {found.kind or 'rows'}"
            )
        if found.format > most:
            raise UserError(
                f"{path} has format {found.format}, this program reads {most}: a later version of "
                f"it wrote the model; use that version"
            )
        manifest = msgspec.json.decode(content, type=noted)
        is_whole = is_signed(content.decode())
    except OSError as error:
        raise UserError(f"{directory} is no saved model: cannot read {path}: {error}") from error
    except UserError:
        raise
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise DamagedArtifactError(str(directory), MANIFEST, str(error)) from error
    if not is_whole:
        raise DamagedArtifactError(
            str(directory), MANIFEST, "its bytes aren't those that were written"
        )
    return manifest


def check_files(directory: Path, files: Mapping[str, FileNote], named: set[str]) -> None:
    """Checks that all files are as they were written.

    Args:
        directory: directory of the model.
        files: size and checksum of each.
        named: files that the manifest names, which must be among them.

    Raises:
        DamagedArtifactError: they aren't.
    """
    if not named <= files.keys():
        raise DamagedArtifactError(str(directory), MANIFEST, "it names files that it lacks")
    check_present(directory, files)
    for name, note in files.items():
        check_content(directory, name, note)
