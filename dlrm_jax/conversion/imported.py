"""Writes a model of PyTorch as a run, whose checkpoint all commands take."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from dlrm_jax.config import Config
from dlrm_jax.conversion.correspondence import Correspondence
from dlrm_jax.conversion.foreign_model import ForeignModel
from dlrm_jax.conversion.table_order import places
from dlrm_jax.data.arrays import Dataset
from dlrm_jax.errors import UserError
from dlrm_jax.files import creating, write_text
from dlrm_jax.inference import vocabularies
from dlrm_jax.mesh import make_mesh, put_whole
from dlrm_jax.run_start import describe_run
from dlrm_jax.saved_config import file_text
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.checkpoint import Checkpoints
from dlrm_jax.training.config_data import OF_DATA
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.model import unread
from dlrm_jax.training.sampling import correction_of
from dlrm_jax.training.serialization import flatten

_OF_GENERATED = ("examples", "zipf_exponent", "teacher")


class Importer:
    """A model of PyTorch, and the settings of the same model here.

    Args:
        model: model of PyTorch.
        config: settings, with the tables of the data.
        data: data whose ids the tables' rows are; None if they aren't known.

    Attributes:
        places: places in the file of the columns' tables.
        correspondence: names and columns of the layers in the file.

    Raises:
        UserError: the settings are of another model; the message names layer or table, and both
            shapes.
    """

    def __init__(self, model: ForeignModel, config: Config, data: Dataset | None):
        self.model, self.config, self._data = model, config, data
        self._what = str(model.file.path)
        columns = config.table_names
        self.places = places(self._what, model.tables, columns, model.form)
        self.correspondence = Correspondence.of(model.architecture, model.form, self.places)
        self._learner = make_learner(config, make_mesh("1x1"))
        owners = config.table_of
        self._tensors: dict[str, list[str]] = {}  # of each table here; several if it is shared
        for column, place in zip(columns, self.places, strict=True):
            self._tensors.setdefault(owners[column], []).append(model.table(place))
        self._check_tables(self._learner)
        self._check_layers(flatten(self._learner.state_specs().params))
        self._check_formula()

    def _check_tables(self, learner: Learner) -> None:
        tables = learner.collection.tables
        if others := sorted(tables.keys() ^ self._tensors.keys()):
            raise UserError(
                f"{self._what}: the settings ask for tables that it doesn't have, such as "
                f"{others[0]}; it has one table for each column, without compression and weights "
                f"of rows"
            )
        for name, table in tables.items():
            for tensor in self._tensors[name]:
                found, expected = self.model.shape(tensor), (table.rows, table.dim)
                if found != expected:
                    raise UserError(
                        f"{self._what}: table {name}: expected shape {expected}, got {found} in "
                        f"{tensor}; a row of the table must be that of the same id of the data"
                    )

    def _check_layers(self, specs: Mapping[str, Any]) -> None:
        names = self.correspondence.names
        if others := sorted(specs.keys() ^ names.keys()):
            where = "the settings" if others[0] in specs else "the file"
            raise UserError(
                f"{self._what}: {others[0]} is a layer of {where} alone; the settings must be "
                f"those of the file: model={self._expected}"
            )
        for name, there in names.items():
            tensor = self.model.tensor(there)
            found, expected = self.model.shape(tensor)[::-1], specs[name].shape
            if found != expected:
                raise UserError(
                    f"{self._what}: layer {name}: expected shape {expected} by the settings, got "
                    f"{found} in {tensor}"
                )

    def _check_formula(self) -> None:
        """Checks what shapes needn't tell: several interactions may have the same widths."""
        known = self.model.architecture.settings()
        for name in ("model", "interaction", "self_interaction"):
            if name == "self_interaction" and known.get("interaction") == "cat":
                continue  # without products it means nothing
            found = getattr(self.config, name)
            if known.get(name, found) != found:
                raise UserError(
                    f"{self._what}: {name}: expected {known[name]!r}, that of the file, got "
                    f"{found!r}"
                )

    @property
    def _expected(self) -> str:
        settings = self.model.architecture.settings()
        model = settings.pop("model")
        return ", ".join([model, *(f"{x}={y}" for x, y in settings.items())])

    def remarks(self) -> Iterator[str]:
        """Yields what a user must know of the run, a sentence each."""
        if self.model.dtypes:
            yield f"{', '.join(self.model.dtypes)} becomes float32"
        if self.correspondence.moves:
            yield "columns of the first layer above the tables are put into the order of pairs here"
        if self._data is None:
            yield "no --data: a row of a table is the id of its number, and no raw value is known"
        if correction := correction_of(self.config, self._kept):
            whose = "as the file notes" if self.model.note else "of the data"
            yield f"{whose}, {correction}; logits are those of the file"

        if self.model.note and self._of_data not in (1, self._kept):
            yield (
                f"of the data, {self._of_data:.4g} of the negative training examples were kept; "
                f"predictions are corrected for {self._kept:.4g}, which the file notes"
            )

    @property
    def _of_data(self) -> float:
        """The share of the negative training examples that preparation has kept."""
        return self._data.kept_negatives.get("train", 1.0) if self._data else 1.0

    @property
    def _kept(self) -> float:
        """The share that predictions are corrected for: that of the file, else of the data."""
        return self.model.note.kept_negatives if self.model.note else self._of_data

    def write(self, output: Path) -> None:
        """Writes the workdir of a run that has done no step, completely or not at all.

        Raises:
            UserError: it exists or can't be written, or the numbers can't be read.
        """
        config, data = self.config, self._data
        with creating(output) as directory:
            directory.mkdir()
            identity = {"data": data.fingerprint if data else "", **config.identity()}
            notes = describe_run(config, self._learner, self._kept)
            notes["converted_from"] = {"file": self._what, "format": self.model.form}
            checkpoints = Checkpoints(directory / "checkpoints", identity)
            checkpoints.prepare()
            checkpoints.save(self._learner, self._state(), notes, None)
            without = {*unread(config), *OF_DATA, *_OF_GENERATED}
            write_text(directory / "config.json", file_text(config, without))
            if data and data.directory:
                vocabularies.keep(data.directory, data.fingerprint, directory)

    def layers(self) -> dict[str, Float32[np.ndarray, "*_"]]:
        """The arrays of the dense model, by their names here."""
        return {
            name: self.correspondence.here(name, self.model.read(self.model.tensor(there)))
            for name, there in self.correspondence.names.items()
        }

    def _state(self) -> TrainState:
        learner, seed, layers = self._learner, self.config.seed, self.layers()
        embedding = learner.collection.from_arrays(lambda x: {"table": self.table(x.name)}, seed)
        state = learner.init(seed, embedding)

        def placed(path: tuple[Any, ...], spec: Any) -> Any:
            array = layers[".".join(str(each.key) for each in path)]
            return put_whole(array.astype(spec.dtype), learner.replicated)

        return dataclasses.replace(state, params=jax.tree.map_with_path(placed, state.params))

    def table(self, name: str) -> Float32[np.ndarray, "rows dim"]:
        """The rows of a table, by its name here.

        Raises:
            UserError: columns share it that have different tables in the file.
        """
        first, *others = self._tensors[name]
        array = self.model.read(first)
        for other in others:
            if not np.array_equal(array, self.model.read(other)):
                raise UserError(
                    f"{self._what}: columns of the data share the table {name}, but {first} "
                    f"and {other} differ; prepare the data without shared columns"
                )
        return array
