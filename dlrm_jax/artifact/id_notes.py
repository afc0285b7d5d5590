"""The part of a manifest that says how ids become rows, where they aren't rows already."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlrm_jax.artifact.notes import FeatureNote, LongCount, LookupNote, Positive, TableNote
from dlrm_jax.errors import UserError

if TYPE_CHECKING:
    from dlrm_jax.data.preprocessing.schema import Schema


@dataclasses.dataclass(frozen=True)
class HashNote:
    """A feature whose ids are hashed to rows.

    The row of an id is h(id ^ s) mod rows, with h the finalizer of MurmurHash3 and s the XXH3 hash,
    of 64 bits, of the salt.

    Attributes:
        feature: name of the feature.
        salt: text, the name of the column that owns the table.
        rows: number of rows.
    """

    feature: str
    salt: str
    rows: Positive


@dataclasses.dataclass(frozen=True)
class KeysNote:
    """Tables each of whose rows belongs to at most one id.

    Attributes:
        name: name of the first table.
        tables: names of the tables, in which an id has the same row.
        features: names of the features that read them.
        rows: number of rows of each.
        defaults: number of rows, from 0 on, that ids without one read, by a hash: of their number
            the upper 32 bits of ``m(id ^ m(seed + 3 g))``, as a share of 2^32, with m the finalizer
            of SplitMix64 and g its golden ratio.
        seed: seed of the hash.
        keys: file of the id of each row, a uint64 array; 0 where there is none.
        live: file of whether each row belongs to an id, a boolean array.
    """

    name: str
    tables: tuple[str, ...]
    features: tuple[str, ...]
    rows: Positive
    defaults: Positive
    seed: LongCount
    keys: str
    live: str


@dataclasses.dataclass(frozen=True)
class IdsNote:
    """How the ids of a model become rows of its tables.

    Attributes:
        schema: fields of the schema of a stream, whose values have ids of 64 bits; None if ids are
            those of a vocabulary.
        hashed: features whose ids are hashed.
        maps: tables whose rows have keys. Ids of features that are in neither are rows.
    """

    schema: dict[str, Any] | None = None
    hashed: tuple[HashNote, ...] = ()
    maps: tuple[KeysNote, ...] = ()

    def own_schema(self) -> Schema | None:
        """The schema of the stream; None without.

        Raises:
            ValueError: the fields aren't those of a schema.
        """
        from dlrm_jax.data.preprocessing.schema import Schema  # with Polars

        try:
            return None if self.schema is None else Schema.from_fields(self.schema)
        except (UserError, TypeError, KeyError) as error:
            raise ValueError(f"id_rows: schema: {error}") from error

    def rows_of(self) -> dict[str, int]:
        """The number of rows by feature, of those whose ids are hashed or have keys."""
        found = {x.feature: x.rows for x in self.hashed}
        return found | {name: x.rows for x in self.maps for name in x.features}

    def check(
        self,
        features: Sequence[FeatureNote],
        tables: Sequence[TableNote],
        lookups: Sequence[LookupNote],
        files: Mapping[str, Any],
    ) -> None:
        """Checks that the note fits the other parts of a manifest.

        Raises:
            ValueError: it doesn't.
        """
        schema = self.own_schema()
        if schema and (schema.categorical, schema.lengths) != (
            tuple(x.name for x in features),
            tuple(x.max_ids for x in features),
        ):
            raise ValueError("id_rows: the schema has other categorical columns")
        known, rows = {x.name for x in features}, {x.name: x.rows for x in tables}
        named = [x.feature for x in self.hashed] + [y for x in self.maps for y in x.features]
        if len({*named}) < len(named) or not {*named} <= known:
            raise ValueError("id_rows: expected names of features, each once")
        if self.schema is not None and {*named} != known:
            raise ValueError(f"id_rows: nothing is said of {min(known - {*named})!r}")
        for own in self.maps:
            if own.keys not in files or own.live not in files:
                raise ValueError(f"files: {own.keys!r} and {own.live!r} aren't among them")
            if own.defaults >= own.rows or own.tables[:1] != (own.name,):
                raise ValueError(f"id_rows: {own.name!r} has other rows or tables than it says")
            if any(rows.get(name) != own.rows for name in own.tables):
                raise ValueError(f"id_rows: {own.name!r} has {own.rows:,} rows, its tables others")
            for lookup in lookups:
                if (lookup.table in own.tables) != (lookup.feature in own.features) or (
                    lookup.table in own.tables and lookup.id_map
                ):
                    raise ValueError(f"id_rows: lookup {lookup.name!r} isn't one of {own.name!r}")
