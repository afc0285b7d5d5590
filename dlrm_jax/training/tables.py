"""The tables of a config: those that the model reads for each field, whole or compressed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
from flax import nnx

from dlrm_jax.config import Config
from dlrm_jax.config_fields import FLOAT32_MAX
from dlrm_jax.embedding import Feature, Lookup, Table
from dlrm_jax.embedding.id_maps import FloorDivide, Remainder
from dlrm_jax.embedding.optimizer import OPTIMIZERS, row_optimizer
from dlrm_jax.embedding.row_optimizer import RowOptimizer
from dlrm_jax.errors import UserError
from dlrm_jax.models.composed import Composer, LearnedPooling, Projection, QuotientRemainder
from dlrm_jax.models.fields import SMALL, Field, Read
from dlrm_jax.training.dynamic_tables import dynamic_rows
from dlrm_jax.training.host_memory import cached_rows
from dlrm_jax.training.model import fields_of, model_class
from dlrm_jax.training.schedule import WarmupDecay

_INIT = {
    "uniform": None,
    "small": jax.nn.initializers.normal(SMALL),
    "zeros": jax.nn.initializers.zeros,
    "ones": jax.nn.initializers.ones,
}

MakeComposer = Callable[[nnx.Rngs], Composer]


@dataclasses.dataclass(frozen=True)
class Descriptions:
    """The descriptions of a config's tables, and of others that the model needs.

    Attributes:
        tables: all tables. Those of feature item are item, item.weight, item.quotient, …
        features: features, by the names of the config.
        lookups: lookups of the features in the tables.
        optimizer: default optimizer.
        placements: given placements, by table name.
        composers: functions that make composed vectors, by the name of the vector.
        cache_rows: rows on the devices of each table in host memory, by name.
    """

    tables: tuple[Table, ...]
    features: tuple[Feature, ...]
    lookups: tuple[Lookup, ...]
    optimizer: RowOptimizer
    placements: dict[str, str]
    composers: dict[str, MakeComposer]
    cache_rows: dict[str, int] = dataclasses.field(default_factory=dict)


def describe(config: Config) -> Descriptions:
    """Describes the tables of a config and their lookups.

    Settings of a feature apply to all of its tables, but narrower ones aren't split by columns.

    Raises:
        UserError: a field contradicts itself; the message names it.
    """
    optimizers = {
        name: _table_optimizer(config, text)
        for name, text in config.per_table("table_optimizers").items()
    }
    unknown = set(config.frozen_tables) - set(config.table_names)
    if unknown:
        raise config.no_table("frozen_tables", min(unknown))
    placed, dynamic = config.per_table("placements"), dynamic_rows(config)
    cached = cached_rows(config)
    tables: dict[str, Table] = {}
    owners: dict[str, str] = {}
    lookups: list[Lookup] = []
    placements: dict[str, str] = {}
    cache_rows: dict[str, int] = {}
    composers: dict[str, MakeComposer] = {}
    table_of = config.table_of
    named = {"table_optimizers": optimizers, "frozen_tables": config.frozen_tables,
             "placements": placed, "dynamic_ids": dynamic, "host_tables": cached}  # fmt: skip
    for setting, names in named.items():
        for name in names:
            if (owner := table_of[name]) != name:
                raise UserError(
                    f"{setting}: {name} has no tables of its own, it shares those of {owner}; name "
                    f"{owner}"
                )
    reads = model_class(config).reads
    rows = dict(zip(config.table_names, config.table_rows, strict=True))
    dims = dict(zip(rows, compressed_widths(config), strict=True))
    for field in fields_of(config):
        owner = table_of[field.name]
        for read in reads(field):
            found, composer = _vector(config, field, owner, rows[owner], dims[owner], read)
            for lookup, (suffix, table_rows, width, init) in found:
                lookups.append(lookup)
                name = owner + suffix
                if owners.setdefault(name, owner) != owner:
                    raise UserError(
                        f"features: {owners[name]!r} and {owner!r} would both have a table "
                        f"{name!r}; give one of them another name"
                    )
                ids = None
                if owner in dynamic:
                    if lookup.id_map:
                        raise UserError(
                            f"dynamic_ids: {owner} is compressed to {config.compression}, whose "
                            f"tables are read by parts of an id; leave one of the two out"
                        )
                    table_rows, ids = dynamic[owner]
                if owner in cached:
                    if lookup.id_map:
                        raise UserError(
                            f"host_tables: {owner} is compressed to {config.compression}, whose "
                            f"tables are small; leave one of the two out"
                        )
                    cache_rows[name] = cached[owner]
                tables[name] = Table(
                    name,
                    table_rows,
                    width,
                    dtype=config.table_dtype,
                    init=_INIT[init],
                    optimizer=optimizers.get(owner),
                    trainable=owner not in config.frozen_tables,
                    stochastic_rounding=config.stochastic_rounding,
                    ids=ids,
                )
                if owner in cached and tables[name].trainable and tables[name].rounds_randomly:
                    raise UserError(
                        f"host_tables: {owner} is rounded at random by the number of each row, "
                        f"which changes in a cache; expected tables of float32, or no stochastic "
                        f"rounding"
                    )
                # Shards may not divide the columns of a narrower table.
                narrower = width < config.embedding_dim
                if owner in placed and not (narrower and placed[owner] == "column_wise"):
                    placements[name] = placed[owner]
            if composer:
                composers[field.name + read.suffix] = composer
    return Descriptions(
        tuple(tables.values()),
        tuple(Feature(field.name, field.max_ids) for field in fields_of(config)),
        tuple(lookups),
        row_optimizer(config.optimizer, schedule(config), config.eps or None),
        placements,
        composers,
        cache_rows,
    )


_TableSpec = tuple[str, int, int, str]
"""A table: suffix of its name, rows, width, kind of initial values."""


def _vector(
    config: Config, field: Field, owner: str, rows: int, narrow: int, read: Read
) -> tuple[list[tuple[Lookup, _TableSpec]], MakeComposer | None]:
    """The lookups of a vector, with their tables, and what composes their results if need be."""
    name = field.name + read.suffix
    whole, compression = read.width is not None, config.compression
    width = read.width or field.width
    pooling = "none" if read.sequence else config.pooling

    def lookup(suffix: str, table: _TableSpec, **changes: object) -> tuple[Lookup, _TableSpec]:
        options = {"pooling": "sum" if pooling == "learned" else pooling, **changes}
        return Lookup(name + suffix, field.name, owner + table[0], **options), table  # pyright: ignore

    c = config.collisions
    large = rows > config.compress_above and rows > -(-rows // c) + c
    if compression == "quotient_remainder" and not whole and large:
        each = width // 2 if config.composition == "concat" else width
        if config.composition == "concat" and width % 2:
            raise UserError(f"composition: concat needs an even embedding_dim, got {width}")
        quotient = (f"{read.suffix}.quotient", -(-rows // c), each, read.init)
        # A product of two small vectors would be far too small.
        init = "uniform" if config.composition == "product" else read.init
        remainder = (f"{read.suffix}.remainder", c, each, init)
        lookups = [
            lookup(".quotient", quotient, id_map=FloorDivide(c)),
            lookup(".remainder", remainder, id_map=Remainder(c)),
        ]
        names = (f"{name}.quotient", f"{name}.remainder")
        return lookups, lambda _: QuotientRemainder(*names, config.composition)
    if compression == "mixed_dimensions" and not whole and narrow < width:
        table = (f"{read.suffix}.narrow", rows, narrow, read.init)
        source = f"{name}.narrow"
        return [lookup(".narrow", table)], lambda rngs: Projection(source, narrow, width, rngs=rngs)
    table = (read.suffix, rows, width, read.init)
    if pooling == "learned" and not whole:
        weight = (f"{read.suffix}.pooling", rows, 1, "ones")
        lookups = [
            lookup(".sequence", table, pooling="none"),
            lookup(".pooling", weight, pooling="none"),
        ]
        return lookups, lambda _: LearnedPooling(f"{name}.sequence", f"{name}.pooling")
    return [lookup("", table)], None


def compressed_widths(config: Config) -> tuple[int, ...]:
    """The width of each table's rows; with mixed dimensions, larger tables have narrower ones."""
    if config.compression != "mixed_dimensions":
        return (config.embedding_dim,) * len(config.table_rows)
    mixed = mixed_dimensions(config.table_rows, config.embedding_dim, config.temperature)
    return tuple(
        width if rows > config.compress_above else config.embedding_dim
        for rows, width in zip(config.table_rows, mixed, strict=True)
    )


def mixed_dimensions(rows: Sequence[int], width: int, temperature: float) -> tuple[int, ...]:
    """max(1, round(d (n_min / nᵢ)^α)), the popularity rule of arXiv 1909.11810.

    Args:
        rows: number nᵢ of rows of each table.
        width: width d of the smallest table.
        temperature: exponent α; 0 gives all tables the same width.
    """
    least = min(rows)
    return tuple(max(1, round(width * (least / n) ** temperature)) for n in rows)


def schedule(config: Config, base: float | None = None) -> WarmupDecay:
    """The learning rate by step.

    Args:
        config: config with the fields of the schedule.
        base: learning rate between warm-up and decay; None for the config's.
    """
    return WarmupDecay(
        config.learning_rate if base is None else base,
        config.warmup_steps,
        config.decay_start,
        config.decay_steps,
    )


def _table_optimizer(config: Config, text: str) -> RowOptimizer:
    name, separator, rate = text.partition(":")
    try:
        base = float(rate) if separator else config.learning_rate
    except ValueError:
        raise UserError(
            f"table_optimizers: expected OPTIMIZER or OPTIMIZER:LEARNING_RATE, got {text!r}"
        ) from None
    if not 0 <= base <= FLOAT32_MAX:  # NaN isn't, either
        raise UserError(
            f"table_optimizers: expected a learning rate that is a finite float32 of 0 or more, "
            f"got {text!r}"
        )
    has_eps = hasattr(OPTIMIZERS.get(name), "eps")
    return row_optimizer(name, schedule(config, base), config.eps or None if has_eps else None)
