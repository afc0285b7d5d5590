"""Writes a model of this program as a state dict of PyTorch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dlrm_jax.conversion.architecture import DIFFERENT
from dlrm_jax.conversion.correspondence import Correspondence
from dlrm_jax.conversion.model_note import ModelNote
from dlrm_jax.conversion.own_model import OwnModel
from dlrm_jax.conversion.table_order import table_names
from dlrm_jax.conversion.tensor_files import write_tensors
from dlrm_jax.conversion.tensor_names import Format, table_tensor
from dlrm_jax.errors import UserError
from dlrm_jax.files import creating


class Exporter:
    """A model of this program, and its tensors in PyTorch.

    Args:
        model: the model.
        form: PyTorch's model.

    Attributes:
        tables: names of the tensors of tables, in the order of the features.
        correspondence: names and columns of the layers there.

    Raises:
        UserError: PyTorch's model has no such interaction or pooling.
    """

    def __init__(self, model: OwnModel, form: Format):
        self.model, self.form = model, form
        self._check_pooling()
        if form == "torchrec" and set(model.interactions) - {DIFFERENT}:
            kinds = " or ".join(map(str, model.interactions))
            raise UserError(
                f"{model.path}: TorchRec's DLRM has dot products of pairs of other vectors alone, "
                f"this model's interaction is {kinds}; give --format=dlrm"
                + (", or the run, which says it" if len(model.interactions) > 1 else "")
            )
        self._tables = table_names([read.feature for read in model.reads], form)
        self.tables = [table_tensor(x, form) for x in self._tables]
        self.correspondence = Correspondence.of(model.architecture, form)

    def _check_pooling(self) -> None:
        for read in self.model.reads:
            if read.pooling == "none":
                raise UserError(f"{self.model.path}: {read.feature} isn't pooled")
            if self.form == "dlrm" and read.pooling == "mean" and read.max_ids > 1:
                raise UserError(
                    f"{self.model.path}: bags of {read.feature} are averaged, and the reference "
                    f"adds; TorchRec does both: --format=torchrec"
                )

    def remarks(self) -> Iterator[str]:
        """Yields what a user must know of the file, a sentence each."""
        model = self.model
        if self.correspondence.moves:
            yield "columns of the first top layer are in the order of TorchRec's pairs"
        readers: dict[str, list[str]] = {}
        for read in model.reads:
            readers.setdefault(read.table, []).append(read.feature)
        for table, features in readers.items():
            if len(features) > 1:
                yield f"table {table} is written {len(features)} times: for {', '.join(features)}"
        if means := [x.feature for x in model.reads if x.pooling == "mean" and x.max_ids > 1]:
            yield f"give pooling=PoolingType.MEAN to the EmbeddingBagConfigs of {', '.join(means)}"
        if model.compute_dtype not in ("", "float32"):
            yield (
                f"predictions here are computed in {model.compute_dtype}: PyTorch's differ, unless "
                f"it does so, too"
            )
        if model.shift:
            yield (
                f"add {model.shift:.9g} to the logits: negative examples of its training were left "
                f"out, and its predictions here are corrected"
            )

    def write(self, output: Path) -> None:
        """Writes the file, completely or not at all; see `write_tensors` for the memory."""
        shapes = [self.model.shapes[read.table] for read in self.model.reads]
        layers = {
            there: self.correspondence.there(here, self.model.layers[here])
            for here, there in self.correspondence.names.items()
        }
        found = itertools.chain(self._table_tensors(), layers.items())
        # What the reference reads beside the tensors; --inference-only uses no more than steps.
        step, unknown = self.model.step, dict.fromkeys(_METRICS, math.nan)
        counts = {"iter": step, "epoch": 0, "nepochs": 1, "nbatches": step, "nbatches_test": 0}
        beside = {**counts, **unknown} if self.form == "dlrm" else {}
        note = ModelNote.of(self.model, self._tables)
        with creating(output) as written:
            of_layers = {name: array.shape for name, array in layers.items()}
            of_all = dict(zip(self.tables, shapes, strict=True)) | of_layers
            write_tensors(written, of_all, found, self._tables, note.text, beside)

    def _table_tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the tensors of tables; those of one table after another."""
        for table, rows in self.model.tables():
            for name, read in zip(self.tables, self.model.reads, strict=True):
                if read.table == table:
                    yield name, rows


_METRICS = ("train_loss", "total_loss", "test_acc", "test_auc")
