import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlrm_jax.data.batches import Batch
from dlrm_jax.embedding import Adagrad, EmbeddingCollection, Feature, Lookup, RowWiseAdagrad, Table
from dlrm_jax.mesh import make_mesh
from experiments.roofline import Machine, Work, matrix_flops, measure, row_bytes


def test_products_count_as_often_as_they_run():
    a, b = jnp.ones((3, 5)), jnp.ones((5, 7))

    def looped(a, b):
        return jax.lax.scan(lambda total, _: (total + a @ b, None), a @ b, length=4)[0]

    assert matrix_flops(jnp.matmul, a, b) == 2 * 3 * 5 * 7
    assert matrix_flops(jax.jit(looped), a, b) == 5 * 2 * 3 * 5 * 7
    batched = jnp.ones((11, 3, 5))
    assert matrix_flops(lambda x: jnp.einsum("bij,bkj->bik", x, x), batched) == 2 * 11 * 3 * 5 * 3


@pytest.mark.parametrize("train", [False, True])
def test_different_rows_are_read_once_and_written_once(train):
    tables = [Table("a", 100, 16), Table("b", 50, 4, optimizer=Adagrad(0.1))]
    features = [Feature("x", 3), Feature("y")]
    lookups = [Lookup("x", "x", "a"), Lookup("y", "y", "b"), Lookup("y too", "y", "a")]
    mesh = make_mesh("1x1")
    collection = EmbeddingCollection(tables, features, lookups, mesh, RowWiseAdagrad(0.1))
    ids = np.array([[1, 2, 2, 7], [1, -1, 3, 7]], np.int32)
    batch = Batch(np.zeros((2, 1), "f4"), ids, np.zeros(2, "f4"), np.ones(2, "f4"))
    a, b = 4, 1  # rows 1, 2, 3, 7 and row 7
    state = 2 * (16 * 4 + 4) * a + 2 * (4 * 4 + 16) * b
    expected = 16 * 4 * a + 4 * 4 * b + (state if train else 0)
    assert row_bytes(collection, [batch, batch], train) == expected


def test_the_limit_is_the_longer_of_the_two():
    machine = Machine(flops=100.0, row_bytes=10.0)
    assert machine.limit(Work(flops=200.0, row_bytes=10.0)) == 2
    assert machine.limit(Work(flops=200.0, row_bytes=30.0)) == 3


def test_a_machine_has_some_speed():
    machine = measure(16)
    assert 1e8 < machine.flops < 1e15
    assert 1e6 < machine.row_bytes < 1e13
