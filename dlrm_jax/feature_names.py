"""Names of categorical features and their tables: a log's columns; C1, C2, … are Criteo's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from dlrm_jax.errors import UserError, shown

_LISTED = 30


def numbered(count: int) -> tuple[str, ...]:
    """C1, C2, … as Criteo calls its categorical columns: the names of features without any."""
    return tuple(f"C{i + 1}" for i in range(count))


def check_names(field: str, names: Sequence[str], count: int) -> None:
    """Checks that names are one for each of so many features, printable, and each there once.

    Raises:
        UserError: they aren't; the message begins with the field.
    """
    if len(names) != count:
        raise UserError(
            f"{field}: expected one name for each of the {count} tables, got {len(names)}"
        )
    for name in names:
        if not (name and name.isprintable()):
            raise UserError(f"{field}: expected names of printable characters, got {name!r}")
        if names.count(name) > 1:
            raise UserError(f"{field}: {name!r} is there twice; name each once")


def check_encodable(field: str, texts: Iterable[str]) -> None:
    """Checks that texts can be written in UTF-8, which Polars needs; JSON may have half characters.

    Raises:
        UserError: one can't; the message begins with the field.
    """
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{field}: expected text of whole characters, got {shown(text)}"
            ) from error


def check_no_pattern(field: str, names: Sequence[str]) -> None:
    """Checks that Polars takes the names of a log's columns for names.

    Raises:
        UserError: it takes one for a pattern of names; the message begins with the field.
    """
    for name in names:
        if name == "*" or (name.startswith("^") and name.endswith("$")):
            raise UserError(
                f"{field}: {name!r} is a pattern to Polars, which reads the logs: * and ^…$ stand "
                f"for several columns; rename it in the log"
            )


def file_name(name: str) -> str:
    """A name as the name of a file, in which / isn't allowed."""
    return name.replace("%", "%25").replace("/", "%2F")


def listed(names: Sequence[str]) -> str:
    """Names for a message; of many, the first ones."""
    if tuple(names) == numbered(len(names)) and len(names) > 1:
        return f"C1..C{len(names)}"
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def renamed_hint(text: str, names: Sequence[str]) -> str:
    """The end of a message on a setting that calls a named feature by its number, as in ``C3=x``.

    Earlier versions numbered the features of every log.
    """
    found = re.match(r"C([1-9][0-9]*)(?=$|=)", text)
    if not found or int(found[1]) > len(names) or found[0] in names:
        return ""
    return f"; {found[0]} is called {names[int(found[1]) - 1]} now, as in the log"
