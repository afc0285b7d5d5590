"""The rule by which rows are for training, validation or test: the text of ``--split``.

| rule | rows that are held out |
|---|---|
| ``time:0.1,0.1`` | the last tenth for test, the tenth before it for validation |
| ``time:7d,1d`` | the last day for test, the seven days before it for validation |
| ``days`` | the last day: its first half for test, the second for validation |
| ``user=COLUMN:0.1,0.1`` | all rows of a tenth of the column's values, and of another tenth |
| ``fraction:0.1,0.1`` | a tenth of the rows at random, and another tenth |
| ``column=COLUMN`` | rows whose column says ``validation`` or ``test`` |
| ``rows=FILE`` | rows that a file names, see `given_split` |
| ``files`` | two files, for validation and for test |
| ``none`` | none |

The two sizes are those of validation and test; without them they are a tenth each.
"""

from __future__ import annotations

import dataclasses
import re

from dlrm_jax.errors import UserError
from dlrm_jax.feature_names import check_no_pattern

PARTS = ("train", "validation", "test")
"""The names of the splits. Rows have the number of their split, their place in this list."""

_SIZED = ("time", "user", "fraction")
_NAMED = {"user": "COLUMN", "column": "COLUMN", "rows": "FILE"}
_KINDS = (*_SIZED, "days", "column", "rows", "files", "none")
_TENTHS = (0.1, 0.1)


@dataclasses.dataclass(frozen=True)
class SplitRule:
    """A rule, read by `parse_rule`.

    Attributes:
        kind: its first word.
        name: column or file, for kinds that have one.
        sizes: size of validation and of test, as share of the rows or values, or as days.
        in_days: whether the sizes are days.
    """

    kind: str
    name: str = ""
    sizes: tuple[float, float] = _TENTHS
    in_days: bool = False

    @property
    def by_row(self) -> bool:
        """Whether each row says what it is for, so that it is known while a file is read."""
        return self.kind in ("user", "fraction", "column", "rows")

    @property
    def column(self) -> str | None:
        """The column that decides; None if none does."""
        return self.name if self.kind in ("user", "column") else None

    @property
    def is_random(self) -> bool:
        """Whether a seed decides."""
        return self.kind in ("user", "fraction")

    def __str__(self) -> str:
        text = f"{self.kind}={self.name}" if self.name else self.kind
        if self.kind not in _SIZED:
            return text
        if self.in_days:
            return f"{text}:" + ",".join(f"{size:.0f}d" for size in self.sizes)
        return f"{text}:" + ",".join(repr(size).removesuffix(".0") for size in self.sizes)


def parse_rule(text: str) -> SplitRule:
    """Reads a rule: ``KIND``, ``KIND=NAME``, either with ``:VALIDATION,TEST`` behind it.

    Raises:
        UserError: it isn't one; the message says what is wrong.
    """
    kind, has_name, name = text.partition("=")
    sizes = None
    if not has_name:
        kind, has_sizes, behind = text.partition(":")
        sizes = behind if has_sizes else None
    elif kind == "user" and (found := re.search(r":([^:]*,[^:]*)$", name)):
        name, sizes = name[: found.start()], found[1]
    if kind not in _KINDS:
        raise UserError(f"split: expected one of {', '.join(map(_form, _KINDS))}, got {text!r}")
    if bool(has_name) != (kind in _NAMED) or (has_name and not name):
        raise UserError(f"split: expected {_form(kind)}, got {text!r}")
    if kind != "rows":
        check_no_pattern("split", [name])
    if sizes is None:
        return SplitRule(kind, name)
    if kind not in _SIZED:
        raise UserError(f"split: {kind} has no sizes of validation and test, got {text!r}")
    return SplitRule(kind, name, *_sizes(sizes, kind, text))


def _form(kind: str) -> str:
    return f"{kind}={_NAMED[kind]}" if kind in _NAMED else kind


def _sizes(sizes: str, kind: str, text: str) -> tuple[tuple[float, float], bool]:
    """The two sizes, and whether they are days."""
    parts = [part.strip() for part in sizes.split(",")]
    in_days = kind == "time" and all(re.fullmatch(r"\d+d", part) for part in parts)
    try:
        values = [float(part.removesuffix("d") if in_days else part) for part in parts]
    except ValueError:
        values = []
    good = len(values) == 2 and sum(values) > 0
    if not good or not (in_days or (min(values) >= 0 and sum(values) < 1)):
        days = ", or days, such as time:7d,1d" if kind == "time" else ""
        raise UserError(
            f"split: the sizes of validation and test are two shares, together above 0 and below "
            f"1, such as {_form(kind)}:0.1,0.1{days}, got {text!r}"
            + ("; none holds nothing out" if values and not any(values) else "")
        )
    return (values[0], values[1]), in_days
