"""The tables of a config that lie in the host's memory, and what they rule out."""

from __future__ import annotations

from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.host_tables.cached_collection import CachedCollection
from dlrm_jax.host_tables.row_feed import RowFeed
from dlrm_jax.training.learner import Learner


def cached_rows(config: Config) -> dict[str, int]:
    """The rows on the devices of each table in host memory, by name.

    Raises:
        UserError: a setting isn't TABLE=ROWS with at least one row and fewer than the table's.
    """
    rows = dict(zip(config.table_names, config.table_rows, strict=True))
    found = {}
    for name, text in config.per_table("host_tables").items():
        if not (text.isascii() and text.isdecimal() and 0 < int(text) < rows[name]):
            raise UserError(
                f"host_tables: expected the rows of {name} on the devices, from 1 to "
                f"{rows[name] - 1}, got {text!r}; leave {name} out to have all {rows[name]} there"
            )
        found[name] = int(text)
    return found


def check_host_tables(config: Config, options: dict[str, bool]) -> None:
    """Checks that nothing in a run with tables in host memory reads their rows otherwise.

    Args:
        config: config of the run.
        options: names of other flags, and whether they were given.

    Raises:
        UserError: a flag or a field does.
    """
    if not config.host_tables:
        return
    all_rows = {"table_l2_rows=all": config.table_l2 > 0 and config.table_l2_rows == "all"}
    for name, given in {**options, **all_rows}.items():
        if given:
            raise UserError(
                f"host_tables: {name} reads and writes rows of tables on the devices, which have "
                f"only some of {','.join(config.host_tables)}; leave one of the two out"
            )


def feed_of(learner: Learner, writes_back: bool = True) -> RowFeed | None:
    """A feed of the last state of a learner; None if no table lies in host memory.

    Args:
        learner: learner of the state.
        writes_back: see `RowFeed`.
    """
    collection = learner.collection
    return RowFeed(collection, writes_back) if isinstance(collection, CachedCollection) else None
