"""A state that goes on with more rows in its tables."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from saved_run import CONFIG, STEPS, examples, save

from dlrm_jax.config import Config
from dlrm_jax.data.batches import TrainBatches
from dlrm_jax.embedding.initial_values import INITIAL_ROWS
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.continuing import check_tables, continued_state
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.metadata import FORMAT, read_metadata
from dlrm_jax.training.step import make_train_step
from dlrm_jax.training.tables import describe

ADAM = dataclasses.replace(CONFIG, optimizer="adam", table_optimizers=("C1=rowwise_adagrad:0.01",))
# C1 stays, C2 gets a row that the shards don't divide, C3 more than are initialized at a time.
ROWS = (7, 3001, INITIAL_ROWS + 5)
GROWN = dataclasses.replace(
    ADAM, table_rows=ROWS, seed=3, placements=("C1=table_wise", "C2=column_wise", "C3=row_wise")
)


def trained(config: Config, mesh: str) -> tuple[Learner, TrainState]:
    learner = make_learner(config, make_mesh(mesh))
    state, step = learner.init(config.seed), make_train_step(learner)
    batches = TrainBatches(examples(512, config=config), config.batch_size, seed=0)
    for i in range(STEPS):
        state, _ = step(state, learner.put(batches[i]))
    return learner, state


def all_arrays(learner: Learner, state: TrainState) -> dict[str, np.ndarray]:
    """Every array of a state, by name."""
    found = {
        f"{table.name}/{key}": np.array(array)
        for table, arrays in learner.collection.to_arrays(state.embedding)
        for key, array in arrays.items()
    }
    dense = dataclasses.replace(state, embedding=None)
    for path, array in jax.tree.leaves_with_path(dense):
        found[jax.tree_util.keystr(path)] = np.array(array)
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A checkpoint of `ADAM`, and what is in it."""
    learner, state = trained(ADAM, "2x4")
    checkpoint = save(tmp_path_factory.mktemp("run"), learner, state, ADAM)
    return checkpoint, all_arrays(learner, state)


@pytest.mark.thorough  # tests/test_run_continued.py has a smaller one
@pytest.mark.parametrize("mesh", ["1x2", "2x4"])
def test_known_rows_go_on_and_new_ones_begin(saved: tuple[Path, dict[str, np.ndarray]], mesh: str):
    checkpoint, before = saved
    learner = make_learner(GROWN, make_mesh(mesh))
    fresh = all_arrays(learner, learner.init(GROWN.seed))
    state = continued_state(learner, GROWN.seed, checkpoint, read_metadata(checkpoint))
    found = all_arrays(learner, state)
    assert found.keys() == before.keys() == fresh.keys()
    assert found[".step"] == STEPS
    for name, old in before.items():
        if name.partition("/")[0] in ("C2", "C3"):  # the tables that have grown
            assert len(fresh[name]) > len(old)
            wanted = np.concatenate([old, fresh[name][len(old) :]])
        else:
            wanted = old
        np.testing.assert_array_equal(found[name], wanted, err_msg=name, strict=True)
    slots = [name for name in before if "/" in name and not name.endswith("table")]
    assert {name.partition("/")[0] for name in slots} == {"C1", "C2", "C3"}
    for name in slots:
        assert before[name].any(), f"{name} is of a trained table"
    for name in ("C2/mean", "C3/variance"):
        assert not found[name][len(before[name]) :].any(), "as in a new run"


QUOTIENTS = dataclasses.replace(
    CONFIG,
    table_rows=(7, 900, 40),
    placements=(),
    table_optimizers=(),
    compression="quotient_remainder",
    collisions=30,
)


@pytest.mark.thorough
def test_quotients_grow_and_remainders_stay(tmp_path: Path):
    learner = make_learner(QUOTIENTS, make_mesh("1x1"))
    state = learner.init(1)
    before = all_arrays(learner, state)
    checkpoint = save(tmp_path, learner, state, QUOTIENTS)
    config = dataclasses.replace(QUOTIENTS, table_rows=(7, 1801, 40))
    new = make_learner(config, make_mesh("1x1"))
    found = all_arrays(new, continued_state(new, 0, checkpoint, read_metadata(checkpoint)))
    for key in ("table", "accumulator"):
        np.testing.assert_array_equal(found[f"C2.remainder/{key}"], before[f"C2.remainder/{key}"])
        rows = found[f"C2.quotient/{key}"]
        assert len(rows) == 61
        np.testing.assert_array_equal(rows[:30], before[f"C2.quotient/{key}"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table_rows": (7, 1801, 40)}, None),
        ({"table_rows": (7, 900, 230)}, "table C3.quotient can't .* larger --compress_above"),
        ({"collisions": 31}, "C2.remainder can't .* 30 remainders there and 31 here; .*=30"),
        ({"table_rows": (6, 900, 40)}, "table C1 .* 7 rows there and only 6 here; .* --grow"),
        ({"embedding_dim": 4, "bottom_mlp": (4,)}, "table C1 .* width 8 there and 4 here"),
    ],
)
def test_tables_that_cannot_go_on_are_named(changes: dict, message: str | None):
    here = make_learner(dataclasses.replace(QUOTIENTS, **changes), make_mesh("1x1"))
    refused = pytest.raises(UserError, match=message) if message else contextlib.nullcontext()
    with refused:
        check_tables(here, Path("run/checkpoints/00000005"), noted(QUOTIENTS))


def noted(config: Config) -> dict[str, Any]:
    """What the metadata of a checkpoint says of the tables of a config."""
    tables = describe(config).tables
    return {
        "format": FORMAT,
        "arrays": {f"{x.name}/table": {"shape": [x.rows, x.dim]} for x in tables},
    }


def test_mixed_dimensions_grow_as_long_as_the_widths_stay():
    config = dataclasses.replace(QUOTIENTS, compression="mixed_dimensions", collisions=4)

    def check(rows: int) -> None:
        larger = dataclasses.replace(config, table_rows=(7, rows, 40))
        check_tables(make_learner(larger, make_mesh("1x1")), Path("run"), noted(config))

    check(901)
    with pytest.raises(UserError, match=r"C2.narrow can't .* width 2 there and 1 .* train a new"):
        check(9000)
