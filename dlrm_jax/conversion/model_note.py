"""What decides predictions and no tensor tells: a note that this program's files carry.

A safetensors file has it in its metadata, a file of torch.save in those of its state dict.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dlrm_jax.config import FIELD_TYPES, Config
from dlrm_jax.config_fields import check_field
from dlrm_jax.conversion.own_model import OwnModel
from dlrm_jax.errors import UserError

_SETTINGS = ("pooling", "interaction", "self_interaction", "compute_dtype")
_BAG_LENGTHS, _KEPT = "bag_lengths", "kept_negatives"


@dataclasses.dataclass(frozen=True)
class ModelNote:
    """What a file of this program notes of its model.

    Attributes:
        settings: fields of its config by name; those that aren't known are left out.
        bag_lengths: most ids of a bag by table of the file.
        kept_negatives: share of the negative training examples that its predictions are corrected
            for, 1 for none.
    """

    settings: Mapping[str, Any]
    bag_lengths: Mapping[str, int]
    kept_negatives: float

    @classmethod
    def of(cls, model: OwnModel, tables: Sequence[str]) -> ModelNote:
        """The note of a model, for tables of the file in the order of the features."""
        settings: dict[str, Any] = {}
        if model.compute_dtype:
            settings["compute_dtype"] = model.compute_dtype
        bags = [read for read in model.reads if read.max_ids > 1]  # others are alike
        if len(poolings := {read.pooling for read in bags or model.reads}) == 1:
            settings["pooling"] = poolings.pop()
        if len(model.interactions) == 1:
            kind = model.interactions[0]
            settings |= {"interaction": kind.interaction, "self_interaction": kind.alike}
        lengths = {x: read.max_ids for x, read in zip(tables, model.reads, strict=True)}
        # Digits that logarithm and exponential change are left out.
        return cls(settings, lengths, float(f"{math.exp(model.shift):.14g}"))

    @classmethod
    def read(cls, what: str, text: str, tables: Sequence[str]) -> ModelNote:
        """Reads what `text` gave.

        Args:
            what: name of the file, for messages.
            text: the note.
            tables: tables of the file.

        Raises:
            UserError: it is damaged, of another model, or a later version's.
        """
        try:
            fields: Any = json.loads(text)
            lengths, kept = fields.pop(_BAG_LENGTHS), fields.pop(_KEPT)
            if later := sorted(fields.keys() - {*_SETTINGS}):
                raise UserError(f"a later version of this program wrote it, with {later[0]}")
            described = {each.name: each for each in dataclasses.fields(Config)}
            for name, value in fields.items():
                check_field(described[name], value, FIELD_TYPES[name])
            check_field(described[_BAG_LENGTHS], tuple(lengths.values()), FIELD_TYPES[_BAG_LENGTHS])
            if lengths.keys() != {*tables}:
                raise UserError(f"{_BAG_LENGTHS}: expected one for each table, got {lengths}")
            if type(kept) not in (int, float) or not 0 < kept <= 1:
                raise UserError(f"{_KEPT}: expected a share of them, got {kept!r}")
        except UserError as error:
            raise UserError(f"{what}: what it notes of the model can't be used: {error}") from error
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise UserError(f"{what}: what it notes of the model is damaged: {error!r}") from error
        return cls(fields, lengths, float(kept))

    @property
    def text(self) -> str:
        """The note as it is written."""
        own = {_BAG_LENGTHS: dict(self.bag_lengths), _KEPT: self.kept_negatives}
        return json.dumps({**self.settings, **own})
