"""A run without the ids that it can do without, see `pruning`: a workdir to go on in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrm_jax.copied_files import copy_directory
from dlrm_jax.files import creating
from dlrm_jax.inference.pruning import Pruning
from dlrm_jax.training.checksums import LoadedSums, SavedSums
from dlrm_jax.training.host_arrays import DIRECTORY
from dlrm_jax.training.kept_data import KEPT, find_kept
from dlrm_jax.training.metadata import write_metadata
from dlrm_jax.training.retention import check_path
from dlrm_jax.training.saved_arrays import load_array, tables_in
from dlrm_jax.training.saved_id_maps import NAME, Arrays, load_arrays, write_id_maps
from dlrm_jax.training.saved_tables import SavedTables


def write_pruned_run(
    checkpoint: Path, metadata: Mapping[str, Any], plans: Sequence[Pruning], workdir: Path
) -> Path:
    """Makes the workdir of a run with the pruned checkpoint, completely or not at all.

    It has the metrics and vocabularies of the run, too. One array of a table is in memory at a
    time, and those that are written with it. Validation metrics of the checkpoint are left out:
    they are of the model before.

    Args:
        checkpoint: directory of the checkpoint, which stays as it is.
        metadata: result of `metadata.read_metadata`.
        plans: result of `plan_pruning`.
        workdir: directory to make.

    Returns:
        The directory of the new checkpoint.

    Raises:
        UserError: there is something of that name, its path can't be that of a run, or the
            checkpoint can't be read.
        DamagedCheckpointError: its files are missing or damaged.
        OSError: the directory can't be written.
    """
    check_path(workdir)
    place = Path("checkpoints", f"{metadata['step']:08d}")
    with creating(workdir) as temporary:
        written = temporary / place
        (written / "tables").mkdir(parents=True)
        _write(checkpoint, metadata, plans, written)
        if (metrics := checkpoint.parent.parent / "metrics.jsonl").exists():
            (temporary / metrics.name).write_bytes(metrics.read_bytes())
        if kept := find_kept(checkpoint):
            copy_directory(kept, temporary / KEPT)
    return workdir / place


def _write(
    checkpoint: Path, metadata: Mapping[str, Any], plans: Sequence[Pruning], written: Path
) -> None:
    changes = {table: plan.change for plan in plans for table in plan.tables}
    loaded, sums = LoadedSums(checkpoint, metadata), SavedSums()
    tables = SavedTables(written / "tables", sums)
    for table, slots in tables_in(metadata).items():
        for key in ("table", *slots):
            array = load_array(checkpoint, metadata, table, key, loaded)
            if table in changes and array.ndim:
                array = array[changes[table].source]
            tables.add(table, key, array)
            del array
            tables.write()
    index = tables.finish()
    noted = metadata[NAME]
    maps: dict[str, Arrays] = {x: load_arrays(checkpoint, metadata, x, loaded) for x in noted}
    loaded.check(together=False)
    maps |= {plan.name: plan.change.arrays for plan in plans}
    of_maps = write_id_maps(written, noted, maps, sums)
    for name in ("dense", DIRECTORY):
        if (checkpoint / name).exists():
            copy_directory(checkpoint / name, written / name)
    of_dense = {x: y for x, y in metadata["checksums"].items() if x.startswith("dense/")}
    changed = {
        "arrays": index,
        NAME: of_maps,
        "checksums": of_dense | sums.metadata(),
        "validation": None,
    }
    for part in ("identity", "config"):
        if items := (metadata.get(part) or {}).get("dynamic_ids"):
            changed[part] = metadata[part] | {"dynamic_ids": _with_rows(items, plans)}
    kept = {name: value for name, value in metadata.items() if name != "format"}
    write_metadata(written, kept | changed)


def _with_rows(items: Sequence[str], plans: Sequence[Pruning]) -> list[str]:
    """Settings TABLE=ROWS:RULE=VALUE:… with the rows that are left."""
    parts = [re.fullmatch(r"(.*?)=\d+((?::.*)?)", item) for item in items]
    features = [part[1] for part in parts if part]
    left = {_feature_of(plan, features): plan.rows_left for plan in plans}
    return [
        f"{part[1]}={left[part[1]]}{part[2]}" if part and part[1] in left else item
        for part, item in zip(parts, items, strict=True)
    ]


def _feature_of(plan: Pruning, features: Sequence[str]) -> str | None:
    """The feature that the tables of a map belong to; FEATURE, FEATURE.weight and such."""
    own = [x for x in features if all(f"{table}.".startswith(f"{x}.") for table in plan.tables)]
    return max(own, key=len, default=None)
