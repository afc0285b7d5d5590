"""The space of a search: which values the fields of a config may take."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args, get_origin

from dlrm_jax.config import FIELD_TYPES, Config
from dlrm_jax.errors import UserError

Value = str | int | float
"""A value of a dimension: a number of a range, or the text of a choice."""

OPTIONS = "model_options"
"""Name of the field whose items may be searched one by one."""


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
                fields[OPTIONS] = tuple(f"{x}={y}" for x, y in options.items())
        model = fields.get("model", base.model), fields.get("interaction", base.interaction)
        dots = model == ("dlrm", "dot") and bool(base.bottom_mlp)
        if dots and "embedding_dim" in fields and "bottom_mlp" not in fields:
            fields["bottom_mlp"] = (*base.bottom_mlp[:-1], fields["embedding_dim"])
        return dataclasses.replace(base, **fields)

    @staticmethod
    def fields(values: Mapping[str, Value]) -> dict[str, Any]:
        """The fields of a config that a combination sets, without options of the model."""
        return {
            name: parsed_value(name, value) if isinstance(value, str) else value
            for name, value in values.items()
            if "." not in name
        }


def parsed_value(name: str, text: str) -> Any:
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
