"""Programs: for any batch size where the code takes it, without calls of this machine."""

from __future__ import annotations

import re
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlrm_jax.artifact.dense_program import (
    BATCH_SIZES,
    PLATFORMS,
    DenseProgram,
    check_calls,
    export_programs,
)
from dlrm_jax.errors import UserError

LAYERS = {"w": np.array([[2], [3]], np.float32)}
WIDTH = 2


def plain(layers: Any, dense: Any, vectors: Any) -> Any:
    return (dense @ layers["w"])[:, 0] + vectors.sum(1)


def test_one_program_for_any_batch_size():
    (made,) = export_programs(plain, LAYERS, 2, WIDTH).items()
    assert made[0] is None
    program = DenseProgram(made[1])
    program.check(None, {"w": ((2, 1), "float32")}, 2, WIDTH, 0)
    for count in (1, 3):
        dense = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
        found = program(LAYERS, dense, dense)
        np.testing.assert_array_equal(found, plain(LAYERS, dense, dense))
    text = program._exported.mlir_module()
    assert "custom_call" not in text.replace("custom_call @shape_assertion", "")
    assert program._exported.platforms == PLATFORMS
    products = re.findall("= stablehlo.dot_general.*", text)
    assert products
    assert program.is_float32
    assert all("precision = [HIGHEST, HIGHEST]" in x for x in products), "float32 anywhere"


def test_programs_for_other_devices(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dlrm_jax.artifact.dense_program.PLATFORMS", ("tpu",))
    content = export_programs(plain, LAYERS, 2, WIDTH)[None]
    monkeypatch.undo()
    with pytest.raises(UserError, match="one device of cpu, cuda, tpu, it is for 1 of tpu"):
        DenseProgram(content)
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    made = jax.export.export(jax.jit(lambda x: x, in_shardings=split), platforms=PLATFORMS)
    content = bytes(made(np.zeros(2, np.float32)).serialize())
    with pytest.raises(UserError, match="it is for 2 of cpu, cuda, tpu"):
        DenseProgram(content)


def test_the_same_bytes_are_one_program_while_somebody_has_it():
    content = export_programs(plain, LAYERS, 2, WIDTH)[None]
    of_one_version = DenseProgram.read(content)
    of_the_next = DenseProgram.read(bytes(bytearray(content)))
    dense = np.ones((1, 2), np.float32)
    of_one_version(LAYERS, dense, dense)
    assert of_the_next._call._cache_size() == 1, "compiled"  # pyright: ignore
    (other,) = export_programs(lambda *x: -plain(*x), LAYERS, 2, WIDTH).values()
    assert DenseProgram.read(other)(LAYERS, dense, dense) == -of_the_next(LAYERS, dense, dense)
    gone = weakref.ref(of_one_version)
    del of_one_version, of_the_next
    assert gone() is None


def test_fixed_batch_sizes_where_the_code_needs_a_number():
    def needs_number(layers: Any, dense: Any, vectors: Any) -> Any:
        return plain(layers, dense.reshape(len(dense), 2), vectors)

    made = export_programs(needs_number, LAYERS, 2, WIDTH)
    assert tuple(made) == BATCH_SIZES
    DenseProgram(made[16]).check(16, {"w": ((2, 1), "float32")}, 2, WIDTH, 1)
    with pytest.raises(UserError, match=r"expected a program .*\[1, 2\].*, it is one of .*\[16, 2"):
        DenseProgram(made[16]).check(1, {"w": ((2, 1), "float32")}, 2, WIDTH, 1)


def test_shorter_floats_are_noticed():
    def short(layers: Any, dense: Any, vectors: Any) -> Any:
        return plain(layers, dense.astype(jnp.bfloat16), vectors)

    (made,) = export_programs(short, LAYERS, 2, WIDTH).values()
    assert not DenseProgram(made).is_float32


def test_calls_of_a_machine_are_refused():
    def solves(layers: Any, dense: Any, vectors: Any) -> Any:
        return jnp.linalg.cholesky(layers["w"] @ layers["w"].T)[0, 0] + dense[:, 0]

    with pytest.raises(UserError, match=r"computes alone, but it calls \w+"):
        export_programs(solves, LAYERS, 2, WIDTH)
    with pytest.raises(UserError, match="it calls my_kernel"):
        check_calls("stablehlo.custom_call @shape_assertion(%1)\n  custom_call @my_kernel(%0)")


def test_what_jax_cannot_export():
    def asks_python(layers: Any, dense: Any, vectors: Any) -> Any:
        shape = jax.ShapeDtypeStruct(dense.shape[:1], jnp.float32)
        return jax.pure_callback(lambda x: x[:, 0], shape, dense)

    with pytest.raises(UserError, match=r"can't be exported|it calls"):
        export_programs(asks_python, LAYERS, 2, WIDTH)


@pytest.mark.parametrize("content", [b"", b"no program", bytes(10_000)])
def test_what_is_no_program(content: bytes):
    with pytest.raises(UserError, match="it is no program"):
        DenseProgram(content)
