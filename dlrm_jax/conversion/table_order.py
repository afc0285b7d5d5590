"""Which table of a file is whose: by their names, or by their order."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dlrm_jax.conversion.tensor_files import TensorFile
from dlrm_jax.conversion.tensor_names import Format, tables_in
from dlrm_jax.errors import UserError

_PREFIX = "t_"


def tables_of(
    file: TensorFile, names: Sequence[str], form: Format, given: Sequence[str]
) -> list[str]:
    """The tables of a file, in the order in which its model reads them.

    Args:
        file: the file.
        names: names of its tensors, without what wraps the model.
        form: format of the file.
        given: order that the user gives; none to find it.

    Raises:
        UserError: there are no tables, others than those given, or their order isn't known.
    """
    found = tables_in(names, form)
    if not found:
        raise UserError(f"{file.path}: there are no tables among its tensors")
    if given:
        if sorted(given) != sorted(found):
            raise UserError(
                f"table_order: expected the tables of {file.path}, {', '.join(found)}, each once, "
                f"got {', '.join(given)}"
            )
        return [*given]
    if form == "dlrm" and found != [*map(str, range(len(found)))]:
        raise UserError(f"{file.path}: expected tables from 0 on, got {', '.join(found)}")
    if form == "dlrm" or file.is_ordered:
        return found
    if file.order is not None and sorted(file.order) == sorted(found):
        return [*file.order]
    split = [re.fullmatch(r"(.*?)(\d+)(\D*)", x) for x in found]
    kinds = {(x[1], x[3]) if x else None for x in split}
    if len(found) > 1 and (len(kinds) > 1 or None in kinds):
        raise UserError(
            f"{file.path}: a safetensors file sorts its tables by name, and the order in which "
            f"the model reads them isn't known; give it: --table_order={','.join(found)}, if it is "
            f"this one"
        )
    return sorted(found, key=lambda x: int(re.findall(r"\d+", x)[-1]) if len(found) > 1 else 0)


def feature_names(tables: Sequence[str]) -> list[str]:
    """The names of features whose tables these are: without ``t_``, if all have that."""
    if all(x.startswith(_PREFIX) and len(x) > len(_PREFIX) for x in tables):
        return [x.removeprefix(_PREFIX) for x in tables]
    return [*tables]


def table_names(features: Sequence[str], form: Format) -> list[str]:
    """The names of the tables of features; ``t_`` and the name in TorchRec, which takes no dots.

    Raises:
        UserError: two would have one name.
    """
    if form == "dlrm":
        return [str(i) for i in range(len(features))]
    names = [_PREFIX + x.replace(".", "_") for x in features]
    if twice := [x for x in names if names.count(x) > 1]:
        raise UserError(
            f"two features would have a table {twice[0]!r} in TorchRec, whose names have no dots; "
            f"convert with --format=dlrm, which numbers them"
        )
    return names


def places(what: str, tables: Sequence[str], columns: Sequence[str], form: Format) -> list[int]:
    """For each column here, the place of its table in the file.

    By name if all names are the same, with or without ``t_``; else by order.

    Args:
        what: name of the file, for messages.
        tables: tables of the file, in their order.
        columns: names of the columns.
        form: format of the file; the reference's tables have no names.

    Raises:
        UserError: there are more of one than of the other, or some names are the same, and stand
            elsewhere.
    """
    if len(tables) != len(columns):
        raise UserError(
            f"{what} has {len(tables)} tables, and there are {len(columns)} categorical columns: "
            f"{', '.join(columns)}; each needs its own"
        )
    named = feature_names(tables)
    if form == "dlrm" or not set(named) & set(columns):
        return [*range(len(tables))]
    if set(named) == set(columns):
        return [named.index(x) for x in columns]
    for i, column in enumerate(columns):
        if column in named and named[i] != column:
            raise UserError(
                f"{what}: column {i + 1} is {column!r}, its table would be {tables[i]!r} by order "
                f"and {tables[named.index(column)]!r} by name; rename the columns, or give "
                f"--table_order"
            )
    return [*range(len(tables))]
