"""New states from parts of saved ones; tables that have become longer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from named_arrays import arrays_of
from saved_run import CONFIG, DATA, save, train_and_save

from dlrm_jax.embedding.initial_values import INITIAL_ROWS
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.models.fields import Field, Model
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.saved_names import NamesThere, names_there
from dlrm_jax.training.warm_start import warm_start

# C1 stays, C2 gets a row that the shards don't divide, C3 more than are initialized at a time.
GROWN = dataclasses.replace(CONFIG, table_rows=(7, 3001, INITIAL_ROWS + 5), seed=3)
NAMES = ("C1", "C2", "C3")
OLDER = ("data of long ago", DATA, "data of yesterday")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A checkpoint and what is in it."""
    learner, state, checkpoint = train_and_save(tmp_path_factory.mktemp("run"), "2x4")
    return checkpoint, arrays_of(learner, state)


@pytest.mark.parametrize(
    ("mesh", "table_dtype"),
    [
        ("1x1", "float32"),
        pytest.param("2x4", "bfloat16", marks=pytest.mark.thorough),
        pytest.param("2x4", "float32", marks=pytest.mark.thorough),
        pytest.param("1x1", "bfloat16", marks=pytest.mark.thorough),
    ],
)
def test_a_grown_table_is_the_trained_one_and_new_rows(
    saved: tuple[Path, dict[str, np.ndarray]], mesh: str, table_dtype: str
):
    checkpoint, trained = saved
    learner = make_learner(dataclasses.replace(GROWN, table_dtype=table_dtype), make_mesh(mesh))
    fresh = arrays_of(learner, learner.init(GROWN.seed))
    state = warm_start(learner, GROWN.seed, checkpoint, NAMES, OLDER)
    found = arrays_of(learner, state)
    assert found.keys() == fresh.keys()
    for name in NAMES:
        old = trained[f"{name}/table"].astype(table_dtype)
        new = fresh[f"{name}/table"]
        assert np.any(old != new[: len(old)])
        np.testing.assert_array_equal(
            found[f"{name}/table"], np.concatenate([old, new[len(old) :]])
        )
    for name in found.keys() - {f"{name}/table" for name in NAMES}:
        np.testing.assert_array_equal(found[name], fresh[name], err_msg=name)


def test_only_what_is_named_is_taken(saved: tuple[Path, dict[str, np.ndarray]]):
    checkpoint, trained = saved
    learner = make_learner(GROWN, make_mesh("2x4"))
    fresh = arrays_of(learner, learner.init(GROWN.seed))
    found = arrays_of(learner, warm_start(learner, GROWN.seed, checkpoint, ("C2", "top"), OLDER))
    np.testing.assert_array_equal(found["C2/table"][:3000], trained["C2/table"])
    for name in ("top/0/kernel", "top/0/bias", "top/1/kernel", "top/1/bias"):
        np.testing.assert_array_equal(found[name], trained[name])
    for name in found.keys() - {"C2/table", "top/0/kernel", "top/0/bias", "top/1/kernel",
                                "top/1/bias"}:  # fmt: skip
        np.testing.assert_array_equal(found[name], fresh[name], err_msg=name)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((40, 8), "1"), "expected real numbers, got dtype <U1"),
        (np.ones((40, 8), complex), "expected real numbers, got dtype complex128"),
        (np.ones((40, 8), "M8[s]"), r"expected real numbers, got dtype datetime64\[s\]"),
        (np.ones((40, 8), [("x", "f4")]), "expected real numbers, got dtype .*'x'"),
        (np.ones((40, 8), bool), "expected real numbers, got dtype bool"),
        (np.ones((40, 9)), r"must have shape \(40, 8\), got \(40, 9\)"),
        ({"C3": np.ones((40, 8))}, "magic string"),
        (b"no array", "magic string"),
    ],
    ids=["text", "complex", "time", "structure", "bool", "shape", "archive", "no array"],
)
@pytest.mark.parametrize("name", ["C3", "top.layers.1.kernel"])
def test_files_without_the_numbers_of_a_table_or_a_layer(
    array: Any, message: str, name: str, tmp_path: Path
):
    learner = make_learner(dataclasses.replace(CONFIG, top_mlp=(40, 8, 1)), make_mesh("1x1"))
    path = tmp_path / f"{name}.npy"
    with path.open("wb") as file:
        if isinstance(array, bytes):
            file.write(array)
        elif isinstance(array, dict):
            np.savez(file, **array)
        else:
            np.save(file, array)
    with pytest.raises(UserError, match=f"^warm start: .*{re.escape(str(path))}") as error:
        warm_start(learner, 0, tmp_path, (name,))
    assert re.search(message, str(error.value))


QR = dataclasses.replace(
    CONFIG,
    table_rows=(7, 900, 40),
    placements=(),
    table_optimizers=(),
    compression="quotient_remainder",
    collisions=30,
)


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of `QR`."""
    learner = make_learner(QR, make_mesh("1x1"))
    return save(tmp_path_factory.mktemp("compressed"), learner, learner.init(1), QR)


@pytest.mark.parametrize("same_ids", [OLDER, pytest.param(None, marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    ("rows", "collisions", "names"),
    [
        (900, 31, ("C2.quotient",)),  # as many rows as with 30
        (1800, 60, ("C2.quotient", "C2.remainder")),
        (1800, 60, ("C2.remainder",)),
    ],
)
def test_other_quotients_and_remainders_are_refused(
    rows: int, collisions: int, names: tuple[str, ...], same_ids: tuple[str, ...], compressed: Path
):
    other = dataclasses.replace(QR, table_rows=(7, rows, 40), collisions=collisions)
    learner = make_learner(other, make_mesh("1x1"))
    message = f"{names[0]} has 30 collisions in .*, expected {collisions}: .* --collisions=30"
    with pytest.raises(UserError, match=message):
        warm_start(learner, 0, compressed, names, same_ids)


def tables_of(learner: Learner, state: TrainState) -> dict[str, np.ndarray]:
    arrays = learner.collection.to_arrays(state.embedding)
    return {table.name: np.asarray(each["table"]) for table, each in arrays}


@pytest.mark.thorough
def test_a_grown_quotient_is_the_trained_one_and_new_rows(tmp_path: Path):
    learner = make_learner(QR, make_mesh("1x1"))
    trained = learner.init(1)
    checkpoint = save(tmp_path, learner, trained, QR)
    other = make_learner(dataclasses.replace(QR, table_rows=(7, 1800, 40)), make_mesh("1x1"))
    state = warm_start(other, 0, checkpoint, ("C2.quotient", "C2.remainder"), OLDER)
    old, new = tables_of(learner, trained), tables_of(other, state)
    assert new["C2.quotient"].shape == (60, 8)
    for name in ("C2.quotient", "C2.remainder"):
        np.testing.assert_array_equal(new[name][:30], old[name])


class OfParts(Model):
    """A model with digits and dots in the names of its layers."""

    def __init__(self, dense_features: int, fields: Sequence[Field], *, rngs: nnx.Rngs):
        self.fields = tuple(fields)
        names = ("0", "C2.part", "third")
        layers = {
            name: nnx.Linear(field.width, 1, rngs=rngs)
            for name, field in zip(names, fields, strict=True)
        }
        self.parts = nnx.Dict(layers)

    def __call__(self, dense: jax.Array, vectors: Mapping[str, jax.Array]) -> jax.Array:
        pairs = zip(self.parts.values(), self.fields, strict=True)
        return sum((layer(vectors[f.name])[:, 0] for layer, f in pairs), jnp.zeros(()))


@pytest.mark.parametrize(
    "name",
    [
        "parts.C2.part",
        *(pytest.param(x, marks=pytest.mark.thorough) for x in ("parts", "parts.0", "C1")),
    ],
)
def test_layers_may_have_digits_and_dots_in_their_names(name: str, tmp_path: Path):
    config = dataclasses.replace(CONFIG, model=f"{__name__}:OfParts")
    learner = make_learner(config, make_mesh("1x1"))
    trained = learner.init(1)
    checkpoint = save(tmp_path, learner, trained, config)
    fresh = learner.init(0)
    state = warm_start(learner, 0, checkpoint, (name,), OLDER)
    assert jax.tree.structure(state) == jax.tree.structure(fresh)
    taken = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, x in jax.tree.leaves_with_path(state.params)
        if x.ndim > 1 and not np.array_equal(x, dict(jax.tree.leaves_with_path(fresh.params))[path])
    }
    wanted = {f"parts.{x}.kernel" for x in ("0", "C2.part", "third")}
    assert taken == {x for x in wanted if f"{x}.".startswith(f"{name}.")}


@pytest.mark.thorough
def test_all_of_a_checkpoint_that_calls_its_tables_by_numbers(tmp_path: Path):
    """As an earlier version did; the run's own names come from the columns of the same log."""
    earlier = dataclasses.replace(
        CONFIG, table_rows=(7, 9, 9), shared_tables=("C3=C2",), placements=(), table_optimizers=(),
        model="din", model_options=("target=C1",),
    )  # fmt: skip
    learner = make_learner(earlier, make_mesh("1x1"))
    trained = learner.init(1)
    checkpoint = save(tmp_path, learner, trained, earlier)
    # The last one has the name that another one has there.
    named = dataclasses.replace(
        earlier, features=("a.b", "items", "C2"), shared_tables=("C2=items",),
        model_options=("target=a.b",),
    )  # fmt: skip
    new = make_learner(named, make_mesh("1x1"))
    assert names_there(earlier, checkpoint, OLDER) == NamesThere()
    assert names_there(named, checkpoint, ["other data"]) == NamesThere()
    there = names_there(named, checkpoint, OLDER)
    assert there.table("C2.weight") == "C3.weight"
    state = warm_start(new, 2, checkpoint, ["all"], OLDER, there)
    found, wanted = (
        {table.name: np.array(arrays["table"]) for table, arrays in x.collection.to_arrays(y)}
        for x, y in ((new, state.embedding), (learner, trained.embedding))
    )
    assert found.keys() == {"a.b", "items"}
    np.testing.assert_array_equal(found["a.b"], wanted["C1"])
    np.testing.assert_array_equal(found["items"], wanted["C2"])
    attention = state.params["attention"], trained.params["attention"]
    for x, y in (("items", "C2"), ("C2", "C3")):
        jax.tree.map(np.testing.assert_array_equal, attention[0][x], attention[1][y])
    jax.tree.map(np.testing.assert_array_equal, state.params["top"], trained.params["top"])
    with pytest.raises(UserError, match=r"'all' stands for all tables .* got all,top; leave the"):
        warm_start(new, 2, checkpoint, ["all", "top"], OLDER, there)
    with pytest.raises(
        UserError, match=r"'C2' has no table of its name, it reads items; name items"
    ):
        warm_start(new, 2, checkpoint, ["C2"], OLDER, there)
