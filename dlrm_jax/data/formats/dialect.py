"""How a CSV file is written: the separator of its fields, and the names of columns it lacks."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from dlrm_jax.errors import UserError
from dlrm_jax.feature_names import check_encodable

STAND_IN = "\x1f"
"""The character that stands for a longer separator: ASCII's unit separator, hardly in any text."""

_NOT_IN_SEPARATORS = '"\n\r'
_SEPARATOR = "separator: expected the text between two fields, such as ';' or '::'"


@dataclasses.dataclass(frozen=True)
class Dialect:
    r"""Separator and header of CSV files.

    Attributes:
        separator: text between two fields, of one character or more, such as ``"\t"`` or ``"::"``.
        header: names of the columns, in order, of files without a header line; empty if the first
            line has the names.

    Raises:
        UserError: the separator can't be told from a field, or a name is there twice.
    """

    separator: str = ","
    header: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        separator, header = self.separator, self.header
        check_encodable("schema: separator", [separator])
        check_encodable("schema: header", header)
        if not separator:
            raise UserError(f"schema: {_SEPARATOR}, got {separator!r}")
        for character in _NOT_IN_SEPARATORS + STAND_IN * (len(separator) > 1):
            if character in separator:
                raise UserError(
                    f"schema: separator must be without {character!r}, which means something else "
                    f"in the file, got {separator!r}"
                )
        if not all(header):
            raise UserError(
                "schema: header: expected a name for each column, got ''; columns that the schema "
                "names nowhere else are ignored, so any name will do"
            )
        twice = [name for name, count in Counter(header).items() if count > 1]
        if twice:
            raise UserError(f"schema: header: {twice[0]!r} is there twice; give each column a name")

    @property
    def delimiter(self) -> str:
        """The one character that Python's reader splits at; see `STAND_IN`."""
        return self.separator if len(self.separator) == 1 else STAND_IN

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Dialect:
        """Makes a dialect of the fields of a schema in JSON; it may have none of them.

        Raises:
            UserError: a field has another type, or there are no names in the header.
        """
        separator, header = fields.get("separator", ","), fields.get("header", ())
        if not isinstance(separator, str):
            raise UserError(f"schema: {_SEPARATOR}, got {separator!r}")
        if not isinstance(header, list | tuple) or not all(isinstance(x, str) for x in header):
            raise UserError(f"schema: header: expected a list of names, got {header!r}")
        if header == []:
            raise UserError("schema: header: expected names of columns, got none; leave it out")
        return cls(separator, tuple(header))
