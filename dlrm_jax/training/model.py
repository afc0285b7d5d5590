"""The dense model of a config: a class of the zoo or of the user."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from flax import nnx

from dlrm_jax.config import FIELD_TYPES, Config
from dlrm_jax.config_fields import read_settings
from dlrm_jax.errors import UserError
from dlrm_jax.models.composed import ComposedEmbeddings, Composer
from dlrm_jax.models.dcn import DCNv2
from dlrm_jax.models.fields import Field, Model
from dlrm_jax.models.mlp import regularize_mlps
from dlrm_jax.models.numeric import NumericEmbedding, numeric_fields
from dlrm_jax.models.zoo import MODELS
from dlrm_jax.training.named_functions import imported

_GIVEN = ("self", "dense_features", "fields", "rngs", "dtype", "param_dtype")

OF_MODELS = ("bottom_mlp", "top_mlp", "interaction", "self_interaction")
"""Fields that are arguments of some models of the zoo."""


def fields_of(config: Config) -> tuple[Field, ...]:
    """The categorical inputs."""
    return tuple(
        Field(name, config.embedding_dim, length)
        for name, length in zip(config.table_names, config.table_bag_lengths, strict=True)
    )


def model_class(config: Config) -> type[Model]:
    """The class that ``config.model`` names.

    Raises:
        UserError: there is no such class.
    """
    if ":" not in config.model:
        if config.model not in MODELS:
            raise UserError(
                f"model: expected one of {', '.join(MODELS)}, or MODULE:CLASS; got {config.model!r}"
            )
        return MODELS[config.model]
    found = imported("model", config.model)
    if not (isinstance(found, type) and issubclass(found, Model)):
        raise UserError(f"model: expected a subclass of dlrm_jax.models.fields.Model, got {found}")
    return found


def make_model(
    config: Config, composers: Mapping[str, Callable[[nnx.Rngs], Composer]], rngs: nnx.Rngs
) -> nnx.Module:
    """The dense model of a config.

    Args:
        config: config of the run.
        composers: functions that make composed vectors, by name, see `tables.Descriptions`.
        rngs: seeds of the initial values.

    Raises:
        UserError: the model doesn't take an option or these inputs.
    """
    check_takes(config, config.labels)
    kind: Any = model_class(config)
    taken = options(kind)
    arguments: dict[str, Any] = {name: getattr(config, name) for name in config_fields(kind)}
    arguments |= _own_options(config, taken)
    if "dtype" in inspect.signature(kind.__init__).parameters:
        arguments["dtype"] = config.compute_dtype
    elif config.compute_dtype != "float32" and not _takes_dtype(kind):
        raise UserError(
            f"compute_dtype: {config.model} takes no argument compute_dtype; expected float32, got "
            f"{config.compute_dtype}"
        )
    if config.numeric_embedding == "none":
        model = kind(config.dense_features, fields_of(config), **arguments, rngs=rngs)
    else:
        model = _on_embedded_numbers(kind, config, arguments, rngs)
    # A class that takes one of these applies it itself.
    dropout = 0.0 if "dropout" in taken else config.dropout
    normalization = "none" if "normalization" in taken else config.normalization
    if _takes_dtype(kind) and (dropout or normalization != "none"):
        regularize_mlps(model, dropout, normalization, rngs)
    if not composers:
        return model
    return ComposedEmbeddings(model, {name: make(rngs) for name, make in composers.items()})


def _on_embedded_numbers(
    kind: Any, config: Config, arguments: dict[str, Any], rngs: nnx.Rngs
) -> NumericEmbedding:
    """The model with a field for each dense feature beside the categorical ones."""
    if not config.dense_features:
        raise UserError("numeric_embedding: there are no dense features to embed; leave it out")
    if kind is DCNv2:  # it would only learn a constant; DLRM's dots make terms of a constant
        arguments = arguments | {"bottom_mlp": ()}
    fields = fields_of(config)
    numeric = numeric_fields(config.dense_features, fields, config.embedding_dim)
    model = kind(0, (*numeric, *fields), **arguments, rngs=rngs)
    return NumericEmbedding(model, numeric, rngs=rngs)


def check_takes(config: Config, labels: Sequence[str], alone: str = "labels={}") -> None:
    """Checks that the model of a config takes so many labels: one, or several if it has heads.

    Args:
        config: config of the run.
        labels: names of the labels.
        alone: advice to train one of them, for the message; ``{}`` is its name.

    Raises:
        UserError: it doesn't.
    """
    if len(labels) > 1 and not takes_several(model_class(config)):
        taking = ", ".join(name for name, kind in MODELS.items() if takes_several(kind))
        raise UserError(
            f"model: {config.model} has one logit, and the data have the labels "
            f"{', '.join(labels)}; {taking} take several, or train one of them alone: "
            f"{alone.format(labels[0])}"
        )


def takes_several(kind: type[Model]) -> bool:
    """Whether a model takes several labels: then their names are an argument of its class."""
    return "labels" in options(kind)


def options(kind: type[Model]) -> dict[str, Any]:
    """The types of a class's arguments besides its inputs, by name."""
    hints = typing.get_type_hints(kind.__init__)
    named = [
        name
        for name, parameter in inspect.signature(kind.__init__).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    # Arguments without an annotation are text.
    return {name: hints.get(name, str) for name in named if name not in _GIVEN}


def _takes_dtype(kind: type[Model]) -> bool:
    """Whether a class takes the dtype of its products: then its MLPs are regularized."""
    return not {"dtype", "compute_dtype"}.isdisjoint(inspect.signature(kind.__init__).parameters)


def config_fields(kind: type[Model]) -> list[str]:
    """The fields of `Config` that are arguments of a class."""
    return [name for name in options(kind) if name in FIELD_TYPES]


def unread(config: Config) -> dict[str, str]:
    """The fields that a config doesn't read, each with the reason: "without --compression"."""
    found = {}
    taken = config_fields(model_class(config))
    for name in OF_MODELS:
        if name not in taken:
            found[name] = f"without a model that has it; {config.model} hasn't"
    compressing = {"collisions": "quotient_remainder", "composition": "quotient_remainder",
                   "temperature": "mixed_dimensions"}  # fmt: skip
    for name, compression in compressing.items():
        if config.compression != compression:
            found[name] = f"without --compression={compression}"
    if config.compression == "none":
        found["compress_above"] = "without --compression"
    if config.table_dtype == "float32":
        found["stochastic_rounding"] = "without --table_dtype=bfloat16"
    if not config.decay_steps:
        found["decay_start"] = "without --decay_steps"
    if not config.plateau_factor:
        found["plateau_patience"] = "without --plateau_factor"
    if not config.table_l2:
        found["table_l2_rows"] = "without --table_l2"
    if not _takes_dtype(model_class(config)):
        missing = (
            "has none" if config.model in MODELS else "takes no argument of that name or dtype"
        )
        for name in {"dropout", "normalization"}.difference(taken):
            found[name] = f"without a model with an MLP; {config.model} {missing}"
    if config.steps:
        found["epochs"] = "with --steps, which says how many there are"
    reads = model_class(config).reads
    if all(read.width for field in fields_of(config) for read in reads(field)):
        found["compression"] = (
            f"without a model that reads vectors; {config.model} reads single weights"
        )
    return found


def _own_options(config: Config, taken: Mapping[str, Any]) -> dict[str, Any]:
    own = {name: kind for name, kind in taken.items() if name not in FIELD_TYPES}
    for item in config.model_options:  # the model comes first, as its flag's example may not fit
        if not any(item.startswith(f"{name}=") for name in own):
            raise UserError(
                f"model_options: {config.model} has the options {', '.join(own)}; expected "
                f"NAME=VALUE of one of them, got {item!r}"
                if own
                else f"model_options: {config.model} has no options, got {item!r}; leave it out"
            )
    texts = read_settings("model_options", config.model_options, own, "NAME=VALUE")
    values = {name: _parsed(name, text, own[name]) for name, text in texts.items()}
    parameters = inspect.signature(model_class(config).__init__).parameters
    for name in own:
        if name not in values and parameters[name].default is inspect.Parameter.empty:
            raise UserError(f"model_options: {config.model} needs {name}=VALUE")
    return values


def _parsed(name: str, text: str, kind: Any) -> Any:
    if type(None) in typing.get_args(kind):  # only its default is None
        (kind,) = (x for x in typing.get_args(kind) if x is not type(None))
    try:
        if typing.get_origin(kind) is tuple:  # commas separate options
            return tuple(_natural(number, 1) for number in text.split("-"))
        if typing.get_origin(kind) is Literal:
            return {choice: choice for choice in typing.get_args(kind)}[text]
        if kind is bool:
            return {"true": True, "false": False}[text]
        if kind is int:
            return _natural(text, 0)
        return float(text) if kind is float else text
    except (ValueError, KeyError):
        raise UserError(
            f"model_options: {name}: expected {_readable(kind)}, got '{name}={text}'"
        ) from None


def _natural(text: str, lowest: int) -> int:
    if int(text) < lowest:
        raise ValueError(text)
    return int(text)


def _readable(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " or ".join(typing.get_args(kind))
    texts = {int: "a whole number from 0", float: "a number", bool: "true or false"}
    return texts.get(kind, "numbers such as 64-32")
