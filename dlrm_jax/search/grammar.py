"""The grammar of spaces.

    learning_rate=0.001..0.1:log, embedding_dim=8|16|32, top_mlp=64,1|128,64,1

A comma before ``NAME=`` begins the next setting; other commas belong to a value, which is written
as for the flag of its name. ``model_options.layers=1..4`` is an argument of the model's class.
"""

from __future__ import annotations

import dataclasses
import difflib
import re

from dlrm_jax.config import FIELD_TYPES, MAY_CHANGE, Config
from dlrm_jax.config_fields import check_field
from dlrm_jax.errors import UserError
from dlrm_jax.search.space import OPTIONS, Dimension, Space, parsed_value

_EXAMPLE = "such as --space='learning_rate=0.001..0.1:log,optimizer=adam|rowwise_adagrad'"

# All trials have the same data and seed, and what is reported of them mustn't differ.
_OF_DATA = (
    "table_rows", "bag_lengths", "dense_features", "examples", "zipf_exponent", "teacher",
    "min_count", "features", "validation_examples",
)  # fmt: skip
_FIXED = {
    **dict.fromkeys(MAY_CHANGE - {"steps", "epochs"}, "it doesn't change what is learned"),
    **dict.fromkeys(_OF_DATA, "all trials have the same data"),
    "labels": "all trials train the same labels, as results of different ones don't compare; make "
    "a search for each",
    "shared_tables": "all trials have the same tables",
    "seed": "all trials have the same one",
    OPTIONS: "one option is searched, such as model_options.layers=1|2|3",
}


def parse_space(text: str) -> Space:
    """Reads a space.

    Args:
        text: settings with commas between them, see above.

    Raises:
        UserError: the text isn't of that form, a setting is unknown or isn't to be searched, or a
            value isn't of its type or range.
    """
    items = [item.strip() for item in re.split(r",(?=\s*[A-Za-z_][\w.]*\s*=)", text)]
    dimensions: dict[str, Dimension] = {}
    for item in items:
        name, separator, values = (part.strip() for part in item.partition("="))
        if not (separator and name and values):
            raise UserError(
                f"space: expected NAME=LOW..HIGH or NAME=VALUE|VALUE, got {item!r}; {_EXAMPLE}"
            )
        if name in dimensions:
            raise UserError(f"space: {name} is there twice")
        _check_name(name)
        dimensions[name] = _dimension(name, values)
    return Space(tuple(dimensions.values()))


def _check_name(name: str) -> None:
    field, dot, option = name.partition(".")
    if dot and (field != OPTIONS or not option.isidentifier()):
        raise UserError(
            f"space: expected the name of a setting, or {OPTIONS}.NAME, got {name!r}; {_EXAMPLE}"
        )
    if field not in FIELD_TYPES:
        close = difflib.get_close_matches(field, [*FIELD_TYPES])
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"space: there is no setting {field!r}{hint}")
    if not dot and field in _FIXED:
        raise UserError(f"space: {field} isn't to be searched: {_FIXED[field]}")


def _dimension(name: str, text: str) -> Dimension:
    if ".." in text and "|" not in text:
        return _range(name, text)
    choices = tuple(each.strip() for each in text.split("|"))
    if len(choices) == 1:
        raise UserError(
            f"space: {name}: expected at least two values, such as {name}=A|B, or a range, such as "
            f"{name}=1..4, got {text!r}; a single value is a flag"
        )
    values = [choice if "." in name else parsed_value(name, choice) for choice in choices]
    for number, value in enumerate(values):
        if value in values[:number]:
            raise UserError(f"space: {name}: {choices[number]} is there twice")
        if "." not in name:
            _check(name, value)
    return Dimension(name, choices)


def _range(name: str, text: str) -> Dimension:
    ends, _, scale = text.partition(":")
    expected = f"LOW..HIGH or LOW..HIGH:log, such as {name}=1..4"
    if scale not in ("", "log") or text.endswith(":"):
        raise UserError(f"space: {name}: expected {expected}, got {text!r}")
    low_text, _, high_text = ends.partition("..")
    kind = FIELD_TYPES.get(name) or (float if re.search(r"[.e]", low_text + high_text) else int)
    if kind not in (int, float):
        raise UserError(
            f"space: {name}: a range is for numbers, got {text!r}; give its values, such as "
            f"{name}=A|B"
        )
    try:
        low, high = kind(low_text), kind(high_text)
    except ValueError:
        what = "integers" if kind is int else "numbers"
        raise UserError(f"space: {name}: expected {what}, {expected}, got {text!r}") from None
    if "." not in name:
        _check(name, low)
        _check(name, high)
    if not low < high:  # also catches NaN
        raise UserError(f"space: {name}: expected the lower end first, got {text!r}")
    if scale and low <= 0:
        raise UserError(f"space: {name}: a logarithm needs an end above 0, got {text!r}")
    return Dimension(name, (), low, high, bool(scale))


def _check(name: str, value: object) -> None:
    described = {each.name: each for each in dataclasses.fields(Config)}
    try:
        check_field(described[name], value, FIELD_TYPES[name])
    except UserError as error:
        raise UserError(f"space: {error}") from error
