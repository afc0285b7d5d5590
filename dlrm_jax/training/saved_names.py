"""The names of a run's tables, which stay as long as the run: its checkpoints have them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.feature_names import numbered
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


@dataclasses.dataclass(frozen=True)
class NamesThere:
    """The names in a checkpoint of what has another one here.

    Attributes:
        features: names of the features there, by their names here; none if they are the same.
    """

    features: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def table(self, name: str) -> str:
        """The name there of a table, as ``C2.weight`` for ``item.weight``."""
        return self._renamed(name, ".", lambda feature: feature)

    def layer(self, path: tuple[Any, ...], there: Collection[str]) -> tuple[Any, ...]:
        """The path there of a parameter, some key of which may be the name of a feature.

        Args:
            path: keys of the parameter.
            there: paths of all parameters there, with dots between their keys.
        """
        renamed = tuple(
            # `ComposedEmbeddings` has no dots in the names of its parts.
            self._renamed(key, "_", lambda feature: feature.replace(".", "_"))
            if isinstance(key, str)
            else key
            for key in path
        )
        return renamed if ".".join(map(str, renamed)) in there else path

    def _renamed(self, name: str, separator: str, written: Callable[[str], str]) -> str:
        """A name that begins with that of a feature; the longest counts."""
        for feature in sorted(self.features, key=len, reverse=True):
            for begin in (feature, written(feature)):
                if f"{name}{separator}".startswith(f"{begin}{separator}"):
                    return self.features[feature] + name[len(begin) :]
        return name


def names_there(config: Config, source: Path, same_ids: Collection[str] | None) -> NamesThere:
    """The names in the source of a warm start of what has another one in a run.

    A checkpoint of an earlier version calls the tables of every log C1, C2, …, in the order of its
    columns. Where the run's data are the same, or continue them, they have the same columns.

    Args:
        config: config of the run.
        source: checkpoint or directory of arrays.
        same_ids: fingerprints of data with the same ids, see `warm_start.warm_start`.
    """
    if not config.features or not (source / "metadata.json").exists():
        return NamesThere()
    metadata = read_metadata(source)
    is_earlier = not saved_fields(metadata.get("config") or {})["features"]
    if not is_earlier or metadata["identity"].get("data") not in (same_ids or ()):
        return NamesThere()
    old = numbered(len(config.features))
    return NamesThere(dict(zip(config.features, old, strict=True)))
