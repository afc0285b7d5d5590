"""The tables that a config names, and its settings of single tables."""

from __future__ import annotations

from dlrm_jax.config_fields import read_settings
from dlrm_jax.errors import UserError
from dlrm_jax.feature_names import listed, numbered, renamed_hint


class TableSettings:
    """The methods of `Config` that read its settings of tables."""

    features: tuple[str, ...]
    table_rows: tuple[int, ...]
    bag_lengths: tuple[int, ...]

    @property
    def table_names(self) -> tuple[str, ...]:
        """The names of the features, which are those of their tables; C1, C2, … without any."""
        return self.features or numbered(len(self.table_rows))

    @property
    def table_bag_lengths(self) -> tuple[int, ...]:
        """The longest bag of each table."""
        return self.bag_lengths * (len(self.table_rows) if len(self.bag_lengths) == 1 else 1)

    @property
    def table_of(self) -> dict[str, str]:
        """Whose tables each feature reads: its own, or those of another that it shares.

        Raises:
            UserError: `shared_tables` names no table, or one that can't be shared.
        """
        shared = self.per_table("shared_tables")
        rows = dict(zip(self.table_names, self.table_rows, strict=True))
        for name, owner in shared.items():
            if owner not in rows or owner in shared or owner == name or rows[name] != rows[owner]:
                raise UserError(
                    f"shared_tables: expected {name} to name another table with {rows[name]} rows "
                    f"that isn't shared itself, got {owner!r}"
                )
        return {name: shared.get(name, name) for name in self.table_names}

    def per_table(self, field: str) -> dict[str, str]:
        """Reads ``("item=value", …)`` as a mapping from table names.

        Raises:
            UserError: an item isn't of that form, or a table is unknown or set twice.
        """
        names, items = self.table_names, getattr(self, field)
        if self.features:
            for item in items:
                if any(item.startswith(f"{name}=") for name in names):
                    continue
                if item not in names:
                    raise self.no_table(field, item)
                value = "ROWS" if field in ("dynamic_ids", "host_tables") else "VALUE"
                raise UserError(f"{field}: expected {item}={value}, got {item!r} alone")
        expected = f"TABLE=VALUE with a table of {listed(names)}"
        return read_settings(field, items, names, expected)

    def no_table(self, field: str, item: str) -> UserError:
        """The error of an item of a field that names no table; the names are those of the data."""
        hint = renamed_hint(item, self.features)
        return UserError(
            f"{field}: {item!r} names no table; there are {listed(self.table_names)}{hint}"
        )
