"""The names of a run's tables, which stay as long as the run: its checkpoints have them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.processes import on_process_0
from dlrm_jax.saved_config import saved_fields
from dlrm_jax.training.metadata import read_metadata
from dlrm_jax.training.retention import Retention

_SETTINGS = ("placements", "table_optimizers", "frozen_tables")


def with_saved_names(config: Config, workdir: Path | None) -> Config:
    """The config of a run, with the names that the tables have in its checkpoints.

    Those of an earlier version call the tables of every log C1, C2, …. Initial values depend on
    these names, and so do the arrays in a checkpoint.

    Args:
        config: config with the tables of the data.
        workdir: directory of the run; None for a run without files.

    Raises:
        UserError: a setting uses the name of a column, which isn't that of its table in this run.
    """
    if workdir is None or not config.features:
        return config
    there = Retention(workdir / "checkpoints", config.keep_checkpoints, config.best_metric)
    if on_process_0(lambda: _saved_features(there)) != []:
        return config  # a new run, or the same names: otherwise its checkpoint is refused
    before = dataclasses.replace(config, features=())
    for field in _SETTINGS:
        for item in getattr(config, field):
            for old, new in zip(before.table_names, config.features, strict=True):
                if new not in before.table_names and f"{item}=".startswith(f"{new}="):
                    raise UserError(
                        f"{field}: the run in {workdir} was begun by an earlier version, which "
                        f"called its tables C1, C2, …, and goes on with these names: write {old} "
                        f"for {new}; or give another workdir"
                    )
    return before


def _saved_features(there: Retention) -> list[str] | None:
    """The names in the latest checkpoint that can be read; None if there is none."""
    for step in reversed(there.steps()):
        try:
            metadata = read_metadata(there.path(step))
        except UserError:  # damaged; the run says so when it restores it
            continue
        return list(saved_fields(metadata.get("config") or {})["features"])
    return None
