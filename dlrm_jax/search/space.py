"""The space of a search: which values the fields of a config may take.

    learning_rate=0.001..0.1:log, embedding_dim=8|16|32, top_mlp=64,1|128,64,1

A comma before ``NAME=`` begins the next setting; other commas belong to a value, which is written
as for the flag of its name. ``model_options.layers=1..4`` is an argument of the model's class.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from dlrm_jax.config import FIELD_TYPES, MAY_CHANGE, Config
from dlrm_jax.config_fields import check_field
from dlrm_jax.errors import UserError

Value = str | int | float
"""A value of a dimension: a number of a range, or the text of a choice."""

_OPTIONS = "model_options"
_EXAMPLE = "such as --space='learning_rate=0.001..0.1:log,optimizer=adam|rowwise_adagrad'"

# All trials have the same data and seed, and what is reported of them mustn't differ.
_OF_DATA = (
    "table_rows", "bag_lengths", "dense_features", "examples", "zipf_exponent", "teacher",
    "min_count", "shared_tables", "features",
)  # fmt: skip
_FIXED = {
    **dict.fromkeys(MAY_CHANGE - {"steps", "epochs"}, "it doesn't change what is learned"),
    **dict.fromkeys(_OF_DATA, "all trials have the same data"),
    "seed": "all trials have the same one",
    _OPTIONS: "one option is searched, such as model_options.layers=1|2|3",
}


@dataclasses.dataclass(frozen=True)
class Dimension:
    """What one setting may be: choices, or a range of numbers.

    Attributes:
        name: field of the config, or ``model_options.NAME``.
        choices: texts as for the flag; none for a range.
        low, high: ends of a range, which belong to it; both integers, or both floats.
        log: whether the logarithm is drawn evenly.
    """

    name: str
    choices: tuple[str, ...] = ()
    low: int | float = 0
    high: int | float = 0
    log: bool = False

    @property
    def size(self) -> int | None:
        """The number of values; None for floats, which never come twice."""
        if self.choices:
            return len(self.choices)
        return None if isinstance(self.low, float) else int(self.high) - int(self.low) + 1

    def draw(self, rng: random.Random) -> Value:
        """A value, evenly."""
        if self.choices:
            return rng.choice(self.choices)
        if isinstance(self.low, float):
            if self.log:
                return math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
            return rng.uniform(self.low, self.high)
        return rng.randint(self.low, int(self.high))

    @property
    def ends(self) -> tuple[Value, ...]:
        """All choices, or both ends of the range."""
        return self.choices or (self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Space:
    """The dimensions of a search, each of another setting."""

    dimensions: tuple[Dimension, ...]

    def __iter__(self) -> Iterator[Dimension]:
        return iter(self.dimensions)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the settings."""
        return tuple(each.name for each in self.dimensions)

    @property
    def size(self) -> int | None:
        """The number of combinations; None if a setting is a float."""
        sizes = [each.size for each in self.dimensions]
        return None if None in sizes else math.prod(x for x in sizes if x)

    def draw(self, rng: random.Random) -> dict[str, Value]:
        """A combination."""
        return {each.name: each.draw(rng) for each in self.dimensions}

    def corners(self, most: int = 256) -> list[dict[str, Value]]:
        """All combinations of choices and ends of ranges, or ``most`` of them."""
        ends = [each.ends for each in self.dimensions]
        if math.prod(map(len, ends)) <= most:
            combinations = list(itertools.product(*ends))
        else:
            rng = random.Random(0)
            combinations = [tuple(rng.choice(each) for each in ends) for _ in range(most)]
        return [dict(zip(self.names, each, strict=True)) for each in combinations]

    def follows(self, config: Config) -> bool:
        """Whether the last width of ``bottom_mlp`` follows ``embedding_dim``, as DLRM needs it."""
        searched = "embedding_dim" in self.names and "bottom_mlp" not in self.names
        dots = config.model == "dlrm" and config.interaction == "dot"
        return searched and dots and bool(config.bottom_mlp)

    def config(self, base: Config, values: Mapping[str, Value]) -> Config:
        """The config of a trial.

        Args:
            base: config of all trials.
            values: combination of this space.

        Raises:
            UserError: the config contradicts itself; the message begins with a field's name.
        """
        fields = self.fields(values)
        options: dict[str, str] = {}
        for each in base.model_options:
            name, _, text = each.partition("=")
            options[name] = text
        for name, value in values.items():
            if option := name.partition(".")[2]:
                options[option] = f"{value:.6g}" if isinstance(value, float) else str(value)
                fields[_OPTIONS] = tuple(f"{x}={y}" for x, y in options.items())
        model = fields.get("model", base.model), fields.get("interaction", base.interaction)
        dots = model == ("dlrm", "dot") and bool(base.bottom_mlp)
        if dots and "embedding_dim" in fields and "bottom_mlp" not in fields:
            fields["bottom_mlp"] = (*base.bottom_mlp[:-1], fields["embedding_dim"])
        return dataclasses.replace(base, **fields)

    @staticmethod
    def fields(values: Mapping[str, Value]) -> dict[str, Any]:
        """The fields of a config that a combination sets, without options of the model."""
        return {
            name: _parsed(name, value) if isinstance(value, str) else value
            for name, value in values.items()
            if "." not in name
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
    if dot and (field != _OPTIONS or not option.isidentifier()):
        raise UserError(
            f"space: expected the name of a setting, or {_OPTIONS}.NAME, got {name!r}; {_EXAMPLE}"
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
    values = [choice if "." in name else _parsed(name, choice) for choice in choices]
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


def _parsed(name: str, text: str) -> Any:
    """The value of a field that a text stands for, as in its flag."""
    kind = FIELD_TYPES[name]
    try:
        if kind is bool:
            return {"true": True, "false": False}[text]
        if get_origin(kind) is tuple:
            item = get_args(kind)[0]
            return tuple(item(each) for each in text.split(",")) if text else ()
        if kind is str or get_origin(kind) is Literal:
            return text
        return kind(text)
    except (ValueError, KeyError):
        what = {bool: "true or false", int: "an integer", float: "a number"}.get(kind)
        raise UserError(
            f"space: {name}: expected {what or 'numbers with commas'}, got {text!r}"
        ) from None


def described(values: Mapping[str, Value]) -> str:
    """A combination as text: ``learning_rate=0.0123, embedding_dim=16``."""
    return ", ".join(f"{name}={shown(value)}" for name, value in values.items())


def shown(value: Value | None) -> str:
    """A value as text; floats have four digits."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
