"""What a config says of its tables: compressed, shared, pooled with learned weights."""

import dataclasses

import jax
import numpy as np
import pytest

from dlrm_jax.config import Config
from dlrm_jax.data.batches import Batch
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.presets import KAGGLE_ROWS
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.step import make_predict, make_train_step
from dlrm_jax.training.tables import compressed_widths, describe, mixed_dimensions

CONFIG = Config(
    table_rows=(1000, 150, 403),
    bag_lengths=(1, 1, 3),
    embedding_dim=8,
    dense_features=2,
    bottom_mlp=(8,),
    top_mlp=(8, 1),
    batch_size=32,
)

# The DLRM reference's widths for the Kaggle tables, whole width 16.
PUBLISHED = (
    3, 3, 1, 1, 4, 9, 1, 3, 16, 1, 2, 1, 2, 8, 1, 1, 11, 2, 2, 15, 1, 9, 10, 1, 6, 1
)  # fmt: skip


def changed(**changes) -> Config:
    return dataclasses.replace(CONFIG, **changes)


def drawn(config: Config) -> Batch:
    rng = np.random.default_rng(0)
    columns = [
        rng.integers(0, rows, (config.batch_size, length))
        for rows, length in zip(config.table_rows, config.table_bag_lengths, strict=True)
    ]
    ids = np.concatenate(columns, axis=1).astype(np.int32)
    ids[::3, -1] = -1
    dense = rng.normal(size=(config.batch_size, config.dense_features)).astype(np.float32)
    labels = rng.integers(0, 2, config.batch_size).astype(np.float32)
    return Batch(dense, ids, labels, np.ones(config.batch_size, np.float32))


COMPRESSIONS = {
    "product": {"compression": "quotient_remainder"},
    "sum": {"compression": "quotient_remainder", "composition": "sum", "collisions": 7},
    "concat": {"compression": "quotient_remainder", "composition": "concat"},
    "mixed": {"compression": "mixed_dimensions"},
    "learned": {"pooling": "learned"},
}


@pytest.mark.parametrize(
    ("changes", "mesh"),
    [
        # The sum and the product of the halves differ in a sign of the formula.
        *((COMPRESSIONS[name], "2x4") for name in ("concat", "mixed")),
        *(
            pytest.param(COMPRESSIONS[name], "2x4", marks=pytest.mark.thorough)
            for name in ("learned", "product", "sum")
        ),
        *(
            pytest.param(changes, "1x1", marks=pytest.mark.thorough)
            for changes in COMPRESSIONS.values()
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_the_model_gets_the_vectors_of_the_formula(changes, mesh):
    config = changed(**changes)
    learner = make_learner(config, make_mesh(mesh))
    batch, state = drawn(config), learner.init(0)
    step = make_train_step(learner)
    for _ in range(2):  # so that learned weights aren't all one
        state, loss = step(state, learner.put(batch))
        assert np.isfinite(float(loss))
    tables = {
        t.name: np.asarray(a["table"]) for t, a in learner.collection.to_arrays(state.embedding)
    }
    params = state.params

    def pooled(name, ids, divisor=1, modulus=2**30):
        present = (ids >= 0)[..., None]
        return (tables[name][np.maximum(ids, 0) // divisor % modulus] * present).sum(1)

    vectors = {}
    for i, name in enumerate(config.table_names):
        ids = batch.ids[:, [i]] if i < 2 else batch.ids[:, 2:]
        c = config.collisions
        if f"{name}.quotient" in tables:
            q = pooled(f"{name}.quotient", ids, divisor=c)
            r = pooled(f"{name}.remainder", ids, modulus=c)
            both = {"product": q * r, "sum": q + r, "concat": np.concatenate([q, r], axis=1)}
            vectors[name] = both[config.composition]
        elif f"{name}.narrow" in tables:
            projection = np.asarray(params["parts"][name]["weight"])
            vectors[name] = pooled(f"{name}.narrow", ids) @ projection
        elif f"{name}.pooling" in tables:
            present = (ids >= 0)[..., None]
            rows = np.maximum(ids, 0)
            weighted = tables[name][rows] * tables[f"{name}.pooling"][rows] * present
            vectors[name] = weighted.sum(1)
        else:
            vectors[name] = pooled(name, ids)
    logits = np.asarray(make_predict(learner)(state, learner.put(batch)))
    apply = jax.jit(lambda params, *inputs: learner.model(params).model(*inputs))
    wanted = apply(params, batch.dense, jax.tree.map(np.float32, vectors))
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-5)


def test_quotient_and_remainder_hold_what_the_formula_says():
    described = describe(changed(compression="quotient_remainder", collisions=4))
    rows = {table.name: table.rows for table in described.tables}
    # n rows become ceil(n / c) + c; the table of 150 is left whole.
    assert rows == {
        "C1.quotient": 250, "C1.remainder": 4, "C2": 150, "C3.quotient": 101, "C3.remainder": 4
    }  # fmt: skip
    halves = describe(changed(compression="quotient_remainder", composition="concat"))
    assert {table.name: table.dim for table in halves.tables}["C1.quotient"] == 4


def test_mixed_dimensions_are_the_published_ones():
    assert mixed_dimensions(KAGGLE_ROWS, 16, 0.3) == PUBLISHED
    kaggle = Config(table_rows=KAGGLE_ROWS, compression="mixed_dimensions")
    whole = [
        16 if rows <= 200 else width for rows, width in zip(KAGGLE_ROWS, PUBLISHED, strict=True)
    ]
    assert list(compressed_widths(kaggle)) == whole
    described = describe(dataclasses.replace(kaggle, compress_above=0))
    assert [table.dim for table in described.tables] == list(PUBLISHED)
    assert mixed_dimensions((5, 50), 16, 0.0) == (16, 16)


def test_features_share_a_table():
    config = changed(table_rows=(1000, 150, 150), shared_tables=("C3=C2",))
    learner = make_learner(config, make_mesh("1x4"))
    assert set(learner.collection.tables) == {"C1", "C2"}
    assert [(x.name, x.table) for x in learner.collection.lookups] == [
        ("C1", "C1"), ("C2", "C2"), ("C3", "C2")
    ]  # fmt: skip
    _, loss = make_train_step(learner)(learner.init(0), learner.put(drawn(config)))
    assert np.isfinite(float(loss))


def test_only_whole_widths_are_split_by_columns():
    config = changed(model="fm", placements=("C1=column_wise", "C2=replicated"))
    assert describe(config).placements == {
        "C1": "column_wise", "C2": "replicated", "C2.weight": "replicated"
    }  # fmt: skip


def test_no_table_grows_by_compression():
    config = changed(table_rows=(4, 5, 9), compression="quotient_remainder", compress_above=0)
    assert [table.rows for table in describe(config).tables] == [4, 5, 3, 4]


def test_what_is_said_of_a_feature_holds_of_all_its_tables():
    config = changed(
        model="fm",
        frozen_tables=("C2",),
        table_optimizers=("C1=sgd:0.5",),
        placements=("C1=row_wise",),
    )
    described = describe(config)
    trained = {table.name: table.trainable for table in described.tables}
    assert trained == {"C1": True, "C1.weight": True, "C2": False, "C2.weight": False,
                       "C3": True, "C3.weight": True}  # fmt: skip
    own = {table.name for table in described.tables if table.optimizer}
    assert own == {"C1", "C1.weight"} == set(described.placements)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shared_tables": ("C3=C2",)}, "another table with 403 rows .* got 'C2'"),
        ({"shared_tables": ("C3=C3",)}, "got 'C3'"),
        ({"shared_tables": ("C3=C9",)}, "got 'C9'"),
        ({"table_rows": (9, 9, 9), "shared_tables": ("C3=C2", "C2=C1")}, "got 'C2'"),
        ({"table_rows": (9, 9, 9), "shared_tables": ("C3=C2",), "frozen_tables": ("C3",)},
         "frozen_tables: C3 has no tables of its own, it shares those of C2; name C2"),
        ({"features": ("a", "a.weight", "b"), "model": "fm"},
         "'a' and 'a.weight' would both have a table 'a.weight'"),
        ({"features": ("a", "b", "c"), "frozen_tables": ("C2",)},
         "^frozen_tables: 'C2' names no table; there are a, b, c; C2 is called b now"),
        ({"table_optimizers": ("C1=sgd:-1",)}, "^table_optimizers: .* 0 or more, got 'sgd:-1'"),
        ({"table_optimizers": ("C1=sgd:nan",)}, "^table_optimizers: .* got 'sgd:nan'"),
        ({"table_optimizers": ("C1=adam:1e39",)}, "^table_optimizers: .* got 'adam:1e39'"),
        ({"compression": "quotient_remainder", "composition": "concat", "embedding_dim": 5,
          "bottom_mlp": (5,)}, "even embedding_dim, got 5"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        describe(changed(**changes))
