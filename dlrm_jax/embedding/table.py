"""The description of tables, features and lookups."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from dlrm_jax.dynamic_ids.policy import DynamicIds
from dlrm_jax.embedding.row_optax import as_row_optimizer
from dlrm_jax.embedding.row_optimizer import RowOptimizer
from dlrm_jax.errors import UserError, shown

Initializer = Callable[[Array, tuple[int, int], Any], Float[Array, "n d"]]
"""``init(key, (n, dim), dtype)`` makes n consecutive rows; it is called for each chunk of rows."""

MAX_ROWS = 2**30
"""Most rows of a table, and of an array of tables on one device: numbers past its end, which stand
for "no row", must fit into int32 as well."""


def is_floating(dtype: str) -> bool:
    """Whether a name is that of a floating dtype."""
    try:
        return jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        return False


def check_whole(
    name: str, value: object, least: int | None = None, most: int | None = None
) -> None:
    """Checks that a value is an integer, Python's or NumPy's.

    Args:
        name: name of the value, for messages.
        value: value.
        least: smallest allowed integer; None for none.
        most: largest allowed integer, with ``least``; None for none.

    Raises:
        UserError: it is none, or out of range.
    """
    if isinstance(value, int | np.integer) and not isinstance(value, bool):  # noqa: SIM102
        if (least is None or value >= least) and (most is None or value <= most):
            return
    end = "on" if most is None else f"to {most}"
    allowed = "" if least is None else f" from {least} {end}"
    raise UserError(f"{name}: expected an integer{allowed}, got {shown(value)}")


@dataclasses.dataclass(frozen=True)
class Feature:
    """One categorical input: for each sample a bag of at most ``max_ids`` ids.

    Attributes:
        name: name, unique among features.
        max_ids: number of the feature's columns in the id array; shorter bags are padded with -1.
    """

    name: str
    max_ids: int = 1

    def __post_init__(self):
        check_whole(f"feature {self.name}: max_ids", self.max_ids)
        if self.max_ids < 1:
            raise UserError(f"feature {self.name}: max_ids must be at least 1, got {self.max_ids}")


@dataclasses.dataclass(frozen=True)
class Table:
    """One embedding table of ``rows`` vectors of width ``dim``.

    Attributes:
        name: name, unique among tables, also in a checkpoint.
        rows: number of rows; ids are 0 to rows - 1. With dynamic ``ids``, the most that have a row
            at a time, and the defaults.
        dim: width of a vector, in numbers.
        dtype: floating dtype of the values, of 16 bits or more.
        init: initial values; None for the reference's U(±√(1/rows)).
        optimizer: a `RowOptimizer` or an optax transform, see `RowOptax`; None for the
            collection's.
        trainable: whether the table is trained; False freezes it.
        stochastic_rounding: whether updated bfloat16 values are rounded up or down at random, so
            that small updates aren't lost; False rounds to the nearest. Other dtypes ignore it.
        ids: policy by which any 64-bit ids get rows and lose them; None if ids are rows. Batches
            have the row numbers that `dynamic_ids.id_maps.IdMaps` gives.
    """

    name: str
    rows: int
    dim: int
    dtype: str = "float32"
    init: Initializer | None = None
    optimizer: RowOptimizer | optax.GradientTransformation | None = None
    trainable: bool = True
    stochastic_rounding: bool = True
    ids: DynamicIds | None = None

    def __post_init__(self):
        if not (self.name and self.name.isprintable()):
            raise UserError(f"table name: expected printable characters, got {self.name!r}")
        for field in ("rows", "dim"):
            check_whole(f"table {self.name}: {field}", getattr(self, field))
        if self.rows < 1 or self.dim < 1:
            raise UserError(
                f"table {self.name}: rows and dim must be at least 1, got {self.rows} x {self.dim}"
            )
        if self.rows > MAX_ROWS:
            raise UserError(f"table {self.name}: at most 2^30 rows fit int32, got {self.rows}")
        if not is_floating(self.dtype) or jnp.dtype(self.dtype).itemsize < 2:
            raise UserError(
                f"table {self.name}: expected a floating dtype of 16 bits or more, got {self.dtype}"
            )
        if not isinstance(self.ids, DynamicIds | None):
            raise UserError(
                f"table {self.name}: ids: expected DynamicIds, such as DynamicIds(evict='lru'), or "
                f"None, got {shown(self.ids)}"
            )
        if self.ids and self.rows <= self.ids.defaults:
            raise UserError(
                f"table {self.name}: expected rows for its {self.ids.defaults} default(s) and at "
                f"least one id, got {self.rows} in all"
            )
        self.row_optimizer(None)

    def row_optimizer(self, default: RowOptimizer | None) -> RowOptimizer | None:
        """The table's own optimizer, else the default; None if the table is frozen."""
        if not self.trainable:
            return None
        if self.optimizer is None:
            return default
        return as_row_optimizer(self.optimizer, f"table {self.name}")

    @property
    def nbytes(self) -> int:
        """Bytes of one copy, without optimizer state."""
        return self.rows * self.dim * jnp.dtype(self.dtype).itemsize

    @property
    def rounds_randomly(self) -> bool:
        """Whether updated values are rounded at random: the table is bfloat16 and asks for it."""
        return self.stochastic_rounding and jnp.dtype(self.dtype) == jnp.bfloat16

    @property
    def initial_bound(self) -> float:
        """The bound b of the reference's initial values, U(±b)."""
        return (1 / self.rows) ** 0.5

    def initial_rows(
        self, key: Array, count: int, bound: float | Float[Array, ""]
    ) -> Float[Array, "n d"]:
        """Initial values of consecutive rows.

        Args:
            key: random key of these rows.
            count: number n of rows.
            bound: `initial_bound`, an argument so that tables that differ only in it share a
                program; an ``init`` of the table's own ignores it.
        """
        shape, dtype = (count, self.dim), jnp.dtype(self.dtype)
        if self.init is None:
            # A shorter dtype rounds the values of float32: it draws others by itself.
            drawn = jnp.promote_types(dtype, jnp.float32)
            return jax.random.uniform(key, shape, drawn, -bound, bound).astype(dtype)
        values = self.init(key, shape, dtype)
        if values.shape != shape:
            raise UserError(
                f"table {self.name}: init must give an array of shape {shape}, got {values.shape}"
            )
        return values


@dataclasses.dataclass(frozen=True)
class Lookup:
    """A read of a table by a feature, and the pooling of its bags.

    Features may share a table, and one feature may read several tables.

    Attributes:
        name: name, unique among lookups, of the pooled vectors.
        feature: name of the feature.
        table: name of the table.
        pooling: kind of pooling. ``"sum"`` is Σ w·v over the ids that are present (w = 1 without
            weights); ``"mean"`` divides it by Σ w. An empty bag, or for the mean one whose weights
            sum to 0, gives the zero vector. ``"none"`` gives the sequence of vectors w·v, [max_ids,
            dim], with zeros for absent ids, as attention reads it.
        id_map: elementwise function of the ids that are present, applied before the table is read,
            such as ``lambda ids: ids // 4``; it must work on NumPy and JAX arrays.
    """

    name: str
    feature: str
    table: str
    pooling: Literal["sum", "mean", "none"] = "sum"
    id_map: Callable[[Any], Any] | None = None

    def __post_init__(self):
        if self.pooling not in ("sum", "mean", "none"):
            raise UserError(
                f"lookup {self.name}: pooling must be sum, mean or none, got {self.pooling}"
            )


def check_descriptions(
    tables: Sequence[Table],
    features: Sequence[Feature],
    lookups: Sequence[Lookup],
    optimizer: RowOptimizer | None,
) -> None:
    """Checks that names are unique, and that named and needed things exist.

    Lookups name features and tables. A lookup must read every table, and a trained table needs an
    optimizer, its own or the default. Tables of a feature with dynamic ids have the same rows.

    Raises:
        UserError: a rule is broken; the message names the table, feature or lookup.
    """
    for kind, items in (("table", tables), ("feature", features), ("lookup", lookups)):
        names = [item.name for item in items]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise UserError(f"{kind} names must be unique, {', '.join(repeated)} came twice")
    for lookup in lookups:
        for kind, name, items in (
            ("feature", lookup.feature, features),
            ("table", lookup.table, tables),
        ):
            known = [item.name for item in items]
            if name not in known:
                raise UserError(
                    f"lookup {lookup.name}: no {kind} named {name!r}; there are {', '.join(known)}"
                )
    _check_dynamic(tables, lookups)
    unread = {table.name for table in tables} - {lookup.table for lookup in lookups}
    if unread:
        raise UserError(f"no lookup reads the table(s) {', '.join(sorted(unread))}")
    without = [t.name for t in tables if t.trainable and t.row_optimizer(optimizer) is None]
    if without:
        raise UserError(f"no optimizer for the table(s) {', '.join(without)}")


def _check_dynamic(tables: Sequence[Table], lookups: Sequence[Lookup]) -> None:
    """Checks that an id of a feature with dynamic ids has one row number in all tables it reads."""
    table_of = {table.name: table for table in tables}
    read_by: dict[str, list[Table]] = {}
    for lookup in lookups:
        table = table_of[lookup.table]
        if table.ids and lookup.id_map is not None:
            raise UserError(
                f"lookup {lookup.name}: expected no id_map for a table with dynamic ids, "
                f"{table.name}, whose map takes all ids; map ids before they are translated"
            )
        read_by.setdefault(lookup.feature, []).append(table)
    for feature, own in read_by.items():
        if len({(table.ids, table.rows) for table in own}) > 1 and any(x.ids for x in own):
            found = ", ".join(f"{x.name} with {x.rows} rows and ids={x.ids}" for x in own)
            raise UserError(
                f"feature {feature}: expected tables of equal rows and ids, since an id with "
                f"dynamic ids has one row number in all of them, got {found}"
            )
