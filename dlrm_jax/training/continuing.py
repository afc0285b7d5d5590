"""The state of a run that continues another one's model, on data with more ids.

Everything goes on: tables and their optimizer state, the dense model and its optimizer's state, the
step, and so the learning rate. Only rows of new ids begin: with the initial values that they have
in any new table of this size, and with the optimizer state of rows that no update has touched.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array

from dlrm_jax.embedding import Table
from dlrm_jax.embedding.initial_values import initial_values
from dlrm_jax.embedding.slab import Slab
from dlrm_jax.errors import UserError
from dlrm_jax.training.checksums import LoadedSums
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.memory import release_memory
from dlrm_jax.training.serialization import array_name, load_rows, load_state


def continued_state(
    learner: Learner, seed: int, checkpoint: Path, metadata: Mapping[str, Any]
) -> TrainState:
    """The state of a checkpoint, with further rows in the tables that have grown.

    Args:
        learner: learner of the new run; mesh and plan may differ from those of the checkpoint.
        seed: seed of the values of new rows.
        checkpoint: directory of the checkpoint. The caller knows that its ids mean the same here.
        metadata: result of `metadata.read_metadata`.

    Raises:
        UserError: a table can't grow as it is stored, see `check_tables`, or the checkpoint is of
            another model or optimizer.
        DamagedCheckpointError: files are missing or damaged.
    """
    check_tables(learner, checkpoint, metadata)
    release_memory()
    sums = LoadedSums(checkpoint, metadata)
    state = load_state(
        checkpoint,
        metadata,
        learner,
        sums,
        lambda table: grown_rows(learner, seed, checkpoint, metadata, table, sums),
        seed,
    )
    sums.check()
    return state


def check_tables(learner: Learner, checkpoint: Path, metadata: Mapping[str, Any]) -> None:
    """Checks that each table of a checkpoint has its place here, before anything is read.

    Rows may be added at the end of a table. That is exact for whole tables, and for quotients and
    remainders as long as ids have the same ones: known ids read the rows that they have read.

    Raises:
        UserError: a table isn't there, is larger or as wide as it can't be here; the message names
            it and the setting.
    """
    for table in learner.collection.tables.values():
        refuse = functools.partial(_refusal, table, checkpoint)
        entry = metadata["arrays"].get(f"{table.name}/{array_name(metadata, 'table')}")
        owner, _, part = table.name.rpartition(".")
        if entry is None:
            hint = "give the settings of its tables"
            if part in ("quotient", "remainder", "narrow"):
                hint = (
                    f"there {owner} is whole, as it had no more rows than compress_above; give a "
                    f"larger --compress_above, so that it stays whole"
                )
            raise refuse("it isn't there", hint)
        rows, dim = entry["shape"]
        if dim != table.dim:
            hint = "give the settings of its tables"
            if part == "narrow":
                hint = (
                    "with mixed_dimensions, widths follow from the rows of all tables, so this one "
                    "can't grow; train a new model on these data"
                )
            raise refuse(f"it has width {dim} there and {table.dim} here", hint)
        if part == "remainder" and rows != table.rows:
            hint = f"give --collisions={rows}"
            raise refuse(f"it has {rows} remainders there and {table.rows} here", hint)
        if rows > table.rows:
            hint = "prepare the data with python -m dlrm_jax preprocess --grow"
            raise refuse(f"it has {rows:,} rows there and only {table.rows:,} here", hint)


def _refusal(table: Table, checkpoint: Path, why: str, hint: str) -> UserError:
    return UserError(f"table {table.name} can't continue that of {checkpoint}: {why}; {hint}")


def grown_rows(
    learner: Learner,
    seed: int,
    checkpoint: Path,
    metadata: Mapping[str, Any],
    table: Table,
    sums: LoadedSums,
) -> Mapping[str, Any]:
    """Reads a table with its optimizer slots, and adds rows if it has more here.

    Args:
        learner: learner of the run.
        seed: seed of the values of new rows.
        checkpoint: directory of the checkpoint.
        metadata: result of `metadata.read_metadata`.
        table: table, with at least as many rows as there.
        sums: checksums of what is loaded; call its ``check`` when all is.
    """
    specs = learner.collection.array_specs(table.name)
    rows = metadata["arrays"][f"{table.name}/{array_name(metadata, 'table')}"]["shape"][0]
    known = {
        key: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=x.sharding)
        if x.shape
        else x
        for key, x in specs.items()
    }
    arrays = load_rows(checkpoint, metadata, table.name, known, sums)
    if rows == table.rows:
        return arrays
    slab = learner.collection.layout.slab_of(table.name)
    shardings = {key: spec.sharding for key, spec in specs.items()}
    add = jax.jit(functools.partial(_with_new_rows, table, slab, seed), out_shardings=shardings)
    return jax.block_until_ready(add(arrays))


def _with_new_rows(
    table: Table, slab: Slab, seed: int, known: Mapping[str, Array]
) -> dict[str, Array]:
    """Arrays of all rows: the known ones, then those of a new table of this size."""
    values = initial_values([table], seed)[table.name]
    fresh = {"table": values}
    if slab.optimizer:
        fresh |= slab.optimizer.initial_slots(values.astype(slab.vector_dtype))
    return {
        # A scalar slot is one number for all rows, and goes on.
        key: jax.lax.dynamic_update_slice_in_dim(fresh[key], array, 0, axis=0)
        if array.ndim
        else array
        for key, array in known.items()
    }
