"""Programs of devices that aren't there, where the compilers for them are installed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from main_job import run

from dlrm_jax import targets
from dlrm_jax.attention.attention_bias import Bias
from dlrm_jax.attention.jagged import Sequences
from dlrm_jax.attention.pointwise_attention import pointwise_attention
from dlrm_jax.embedding.planning.devices import DEVICES
from dlrm_jax.errors import UserError
from dlrm_jax.targets import TARGETS, lacks, target_mesh
from dlrm_jax.training.operations import operations

TOKENS = 512
EACH = [
    pytest.param(name, marks=pytest.mark.skipif(bool(lacks(name)), reason=lacks(name) or ""))
    for name in ("h100", "tpu_v5e")
]


@pytest.fixture(autouse=True)
def _programs_are_kept_afterwards():
    least: Any = jax.config.jax_persistent_cache_min_compile_time_secs  # pyright: ignore[reportAttributeAccessIssue]
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


def test_targets_are_devices_of_the_planner():
    assert set(TARGETS) <= set(DEVICES)


@pytest.mark.parametrize(("name", "extra"), [("h100", "aot-cuda"), ("tpu_v5e", "aot-tpu")])
def test_a_compiler_that_is_not_installed(name: str, extra: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(targets, "_is_installed", lambda module: False)
    with pytest.raises(
        UserError, match=rf'--target={name}: expected .* pip install -e "\.\[{extra}\]"'
    ):
        target_mesh(name, (1, 1))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("h100", (3, 4), "--mesh: expected at most 8 GPUs or a multiple, .* got 12"),
        ("tpu_v5e", (3, 1), "--mesh: expected 1, 2, 4, 8 .* up to 256 chips .* got 3"),
        ("tpu_v5e", (32, 16), "--mesh: expected 1, 2, 4, 8 .* up to 256 chips .* got 512"),
    ],
)
def test_counts_of_devices_that_are_not_sold(
    name: str, shape: tuple[int, int], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(targets, "_is_installed", lambda module: True)
    with pytest.raises(UserError, match=message):
        target_mesh(name, shape)


def test_operations_of_a_program():
    def program(x):
        return jax.lax.fori_loop(0, 9, lambda _, y: jnp.sort(y * 2), x)

    found = operations(jax.jit(program).lower(jnp.arange(8.0)).compile())
    assert found["sort"] == found["while"] == 1
    assert found["dot"] == 0


@pytest.mark.parametrize("name", EACH)
def test_gradients_of_attention_are_kernels_without_a_matrix_of_tokens(name: str):
    mesh = target_mesh(name, (1, 1))

    def attend(*given):
        return pointwise_attention(*given, 0.1)

    def of(*shape: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    def total(query, key, value, by_distance, by_time, starts, times, following):
        sequences, bias = Sequences(starts, times, following), Bias(by_distance, by_time)
        return jnp.sum(jnp.square(jnp.asarray(attend(query, key, value, bias, sequences))))

    places = [of(TOKENS, dtype="int32")] * 3
    given = *(of(TOKENS, 2, width) for width in (25, 25, 32)), of(200), of(129), *places
    gradients = jax.shard_map(
        jax.grad(total, range(5)), mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(),
        check_vma=False,
    )  # fmt: skip
    compiled = jax.jit(gradients).lower(*given).compile()
    kernel = {"h100": "__gpu$xla.gpu.triton", "tpu_v5e": "tpu_custom_call"}[name]
    assert operations(compiled)[f"custom-call {kernel}"] == 3
    assert f"{TOKENS},{TOKENS}" not in (compiled.as_text() or "")


@pytest.mark.parametrize("name", EACH)
def test_a_step_for_a_target(name: str):
    flags = "--preset=small", "--table_rows=500,90", "--top_mlp=8,1", f"--target={name}"
    result = run(*flags, "--mesh=2x2", program=("-m", "dlrm_jax", "compile"))
    assert result.returncode == 0, result.stderr[-2000:]
    kind = {"h100": "NVIDIA H100 80GB HBM3", "tpu_v5e": "TPU v5 lite"}[name]
    assert f"mesh 2x2: 4 x {kind}" in result.stdout
    assert "\nfusion " in result.stdout
    assert "\nall-to-all " in result.stdout
