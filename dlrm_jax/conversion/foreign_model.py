"""A model of PyTorch in a file: its tables, its layers and their widths."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float32

from dlrm_jax.conversion.architecture import (
    BESIDE,
    DIFFERENT,
    Architecture,
    Kind,
    architecture_of,
)
from dlrm_jax.conversion.model_note import ModelNote
from dlrm_jax.conversion.table_order import tables_of
from dlrm_jax.conversion.tensor_files import TensorFile, open_tensors
from dlrm_jax.conversion.tensor_names import (
    WITHOUT_NUMBERS,
    Format,
    Layers,
    form_of,
    table_tensor,
    wrapper_of,
)
from dlrm_jax.errors import UserError

_MEANINGS = {
    "weight_q": "quotient-remainder tables (--qr-flag)",
    "weight_r": "quotient-remainder tables (--qr-flag)",
    ".embs.": "tables of mixed dimensions (--md-flag)",
    "v_W_l.": "learned weights of rows (--weighted-pooling)",
    "interaction_branch": "TorchRec's DLRM_Projection",
    "kernels": "another cross network than LowRankCrossNet",
}


@dataclasses.dataclass(frozen=True)
class ForeignModel:
    """A DLRM or DLRM-DCNv2 of PyTorch.

    Attributes:
        file: the file, whose tensors are read when they are asked for.
        form: format of the names.
        wrapper: prefix of each name.
        tables: tables, in the order in which the model reads them.
        architecture: the widths.
        note: note of the model, if this program wrote the file.
    """

    file: TensorFile
    form: Format
    wrapper: str
    tables: tuple[str, ...]
    architecture: Architecture
    note: ModelNote | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        form: Format | None = None,
        table_order: Sequence[str] = (),
        settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> ForeignModel:
        """Reads the names and shapes of a file.

        Args:
            path: the file.
            form: format that is expected; None for that which the names have.
            table_order: tables in the order of the model; none to find it, see `tables_of`.
            settings: fields of a config, which count more than those of the file's note. They say
                the interaction of the reference's model where the widths fit several. As many
                numbers come from a table less and pairs of vectors with themselves, too: these
                must be asked for.

        Raises:
            UserError: it can't be read, or has other tensors than those of such a model.
        """
        file = open_tensors(path)
        wrapper = wrapper_of(file.shapes)
        names = [x.removeprefix(wrapper) for x in file.shapes]
        found = form_of(names)
        if found is None or form not in (None, found):
            expected = "a DLRM of the reference or of TorchRec" if form is None else repr(form)
            there = f"{found!r}" if found else f"tensors such as {', '.join(names[:3]) or 'none'}"
            raise UserError(f"{path}: expected {expected}, got {there}")
        tables = tables_of(file, names, found, table_order)
        counts = Layers.of(names, found)
        there = counts.there(found) if counts.bottom and counts.top else {}
        known = {*there.values(), *(table_tensor(x, found) for x in tables)}
        _check_names(path, known, set(names) - WITHOUT_NUMBERS, bool(there))
        shapes = {
            here: file.shapes[wrapper + name][::-1]  # kernels are transposed
            for here, name in there.items()
        }
        of_tables = [file.shapes[wrapper + table_tensor(x, found)] for x in tables]
        for table, shape in zip(tables, of_tables, strict=True):
            if len(shape) != 2:
                raise UserError(
                    f"{path}: table {table}: expected shape (rows, columns), got {shape}"
                )
            if shape[1] != (dim := of_tables[0][1]):
                raise UserError(
                    f"{path}: table {table}: expected {dim} columns, as table {tables[0]} has, got "
                    f"shape {shape}"
                )
        note = None if file.note is None else ModelNote.read(str(path), file.note, tables)
        said = {**(note.settings if note else {}), **settings}
        interaction = said.get("interaction", "dot")
        asked = Kind(interaction, interaction == "dot" and said.get("self_interaction", False))
        kinds = (asked, DIFFERENT, BESIDE) if found == "dlrm" else (DIFFERENT,)
        architecture, _ = architecture_of(str(path), shapes, of_tables, kinds)
        return cls(file, found, wrapper, tuple(tables), architecture, note)

    def tensor(self, name: str) -> str:
        """The name in the file of a tensor."""
        return self.wrapper + name

    def table(self, place: int) -> str:
        """The name in the file of a table's tensor, by the table's place."""
        return self.tensor(table_tensor(self.tables[place], self.form))

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of a tensor, by its name in the file."""
        return self.file.shapes[tensor]

    def read(self, tensor: str) -> Float32[np.ndarray, "*_"]:
        """The numbers of a tensor, by its name in the file; see `TensorFile.read`."""
        return self.file.read(tensor)

    @property
    def dtypes(self) -> list[str]:
        """The types of numbers that are there, besides float32."""
        return sorted({*self.file.dtypes.values()} - {"float32", "int64", "I64"})


def _check_names(path: Path, known: set[str], found: set[str], has_layers: bool) -> None:
    missing = sorted(known - found) if has_layers else ["layers of both MLPs"]
    if missing:
        what = ", ".join(missing[:3])
        raise UserError(f"{path} has no {what}; give the whole state dict of the model")
    if extra := sorted(found - known):
        meant = {text for key, text in _MEANINGS.items() if any(key in x for x in extra)}
        raise UserError(
            f"{path} has tensors that aren't of a plain DLRM or DLRM_DCN: {', '.join(extra[:3])}"
            f"{f' and {len(extra) - 3} more' if len(extra) > 3 else ''}"
            f"{f' ({meant.pop()})' if meant else ''}; give model.state_dict() of such a model "
            f"alone, without the state of an optimizer"
        )
