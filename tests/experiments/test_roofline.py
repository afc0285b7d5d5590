import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from main_job import run

from dlrm_jax.data.batches import Batch
from dlrm_jax.embedding import Adagrad, EmbeddingCollection, Feature, Lookup, RowWiseAdagrad, Table
from dlrm_jax.mesh import make_mesh
from dlrm_jax.native import layers, library
from dlrm_jax.native.thread_count import processors
from dlrm_jax.training.native_model import dot
from experiments.benchmarks.roofline import Machine, Work, matrix_flops, measure, row_bytes
from experiments.benchmarks.roofline_picture import point


def test_products_count_as_often_as_they_run():
    a, b = jnp.ones((3, 5)), jnp.ones((5, 7))

    def looped(a, b):
        return jax.lax.scan(lambda total, _: (total + a @ b, None), a @ b, length=4)[0]

    assert matrix_flops(jnp.matmul, a, b) == 2 * 3 * 5 * 7
    assert matrix_flops(jax.jit(looped), a, b) == 5 * 2 * 3 * 5 * 7
    batched = jnp.ones((11, 3, 5))
    assert matrix_flops(lambda x: jnp.einsum("bij,bkj->bik", x, x), batched) == 2 * 11 * 3 * 5 * 3


def test_a_native_interaction_has_the_products_of_its_pairs():
    x, vectors = jnp.ones((16, 5)), [jnp.ones((5, 16))] * 3
    assert matrix_flops(functools.partial(dot, columns=True), x, vectors) == 2 * 16 * 6 * 5

    def send_cotangents(x, cotangent):
        return jax.vjp(lambda x: dot(x, vectors, columns=True), x)[1](cotangent)

    assert matrix_flops(send_cotangents, x, jnp.ones((16 + 6, 5))) == 2 * 2 * 16 * 6 * 5


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
    micro_batches = batch._replace(ids=batch.ids[:, None])
    assert row_bytes(collection, [micro_batches], train) == expected


def test_the_limit_is_the_longer_of_the_two():
    machine = Machine(flops=100.0, row_bytes=10.0)
    assert machine.limit(Work(flops=200.0, row_bytes=10.0)) == 2
    assert machine.limit(Work(flops=200.0, row_bytes=30.0)) == 3


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of the next runs that the benchmark times."""
    given: list[float] = []

    def take(run: Callable[[], object]) -> float:
        run()
        return given.pop(0)

    monkeypatch.setattr("experiments.benchmarks.roofline.fastest_seconds", take)
    monkeypatch.setattr("experiments.benchmarks.roofline.SIDE", 512)
    monkeypatch.setattr("experiments.benchmarks.roofline._TABLE_BYTES", 2**24)
    return given


def test_speeds_are_those_of_the_products_and_the_rows(seconds: list[float]):
    seconds += [0.5, 0.25]
    machine = measure(16, native=False)
    assert machine.flops == 2 * 512**3 / 0.5
    assert machine.row_bytes == 2**19 * 16 * 4 / 0.25
    seconds += [0.5, 0.25]
    assert measure(16, native=False, product_seconds=0.125).flops == 2 * 512**3 / 0.125


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loop_in_the_first_cache_may_be_the_fastest(seconds: list[float], dtype: str):
    if not (library.load() and (dtype == "float32" or layers.supports_bfloat16())):
        pytest.skip(f"no native kernels multiply {dtype} here")
    seconds += [0.5, 0.5, 1e-6, 0.25]
    numbers = 48 * (2 if dtype == "bfloat16" else 1)
    operations = 2 * 96 * 32 * numbers * 2000 * processors()
    assert measure(16, native=True, dtype=dtype).flops == pytest.approx(operations / 1e-6)


FOUND = {
    "preset": "kaggle", "batch_size": 2048, "mode": "train", "optimizer": "sgd", "median_ms": 20.0,
    "step_gflop": 4.0, "machine_gflops": 400.0, "step_row_mib": 10.0,
    "machine_row_gib_per_second": 4.0,
}  # fmt: skip


def test_a_step_below_its_roof():
    """10 ms of products and 2.44 of rows in a step of 20."""
    above = point(FOUND)
    assert above.name == "kaggle, 2,048, sgd"
    assert above.intensity == pytest.approx(10 / (1e4 / 2**10 / 4))
    assert above.speed == above.share == 0.5
    by_rows = point({**FOUND, "step_row_mib": 61.44, "mode": "infer"})  # 15 ms
    assert by_rows.name == "kaggle, 2,048, infer"
    assert by_rows.share == pytest.approx(0.75)


@pytest.mark.thorough
def test_the_picture_of_files(tmp_path: Path):
    results = tmp_path / "a.json"
    results.write_text(json.dumps(FOUND))
    picture = tmp_path / "roofline.svg"
    program = ("-m", "experiments.benchmarks.roofline_picture")
    drawn = run(f"--results={results}", f"--output={picture}", program=program)
    assert drawn.returncode == 0, drawn.stderr
    assert picture.read_text().startswith("<?xml")
    results.write_text("{}")
    refused = run(f"--results={results}", f"--output={picture}", program=program)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: {results}: expected what experiments.benchmarks.step")
