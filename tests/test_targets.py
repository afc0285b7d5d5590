"""Programs of devices that aren't there, where the compilers for them are installed."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
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
from dlrm_jax.embedding.planning.devices import DEVICES, device_like
from dlrm_jax.errors import UserError
from dlrm_jax.programs.hlo import program_of
from dlrm_jax.programs.report import operations
from dlrm_jax.targets import TARGETS, Target, lacks, parse_target, target_mesh

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


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("h100", Target("h100")),
        ("b200:16", Target("b200", (16,))),
        ("tpu_v5e:16x16", Target("tpu_v5e", (16, 16))),
        ("tpu_v5p:2x2x4", Target("tpu_v5p", (2, 2, 4))),
    ],
)
def test_targets_with_and_without_their_number(text: str, target: Target):
    assert parse_target(text) == target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v100", "--target: expected one of a100, .*tpu_v6e, alone or with .* got 'v100'"),
        ("h100:", "--target: expected h100:8, a number of devices, got 'h100:'"),
        ("h100:2x4", "--target: expected h100:8, .* got 'h100:2x4'"),
        ("tpu_v5e:2x2x2", "--target: expected tpu_v5e:8 or tpu_v5e:4x8, .* got 'tpu_v5e:2x2x2'"),
        ("tpu_v4:8x", "--target: expected tpu_v4:8 or tpu_v4:2x2x4, .* got 'tpu_v4:8x'"),
    ],
)
def test_targets_that_cannot_be_read(text: str, message: str):
    with pytest.raises(UserError, match=message):
        parse_target(text)


@pytest.mark.parametrize(
    ("text", "shape", "kind", "processes"),
    [
        ("a100:16", (4, 4), "NVIDIA A100-SXM4-80GB", 2),
        ("h200", (1, 4), "NVIDIA H200", 1),
        ("b200:8", (2, 4), "NVIDIA B200", 1),
        ("tpu_v4", (1, 1), "TPU v4", 1),
        ("tpu_v4", (2, 4), "TPU v4", 2),
        ("tpu_v5p:128", (8, 16), "TPU v5", 32),
        ("tpu_v5p:2x2x3", (3, 4), "TPU v5", 3),
        ("tpu_v5e:16x16", (16, 16), "TPU v5 lite", 64),
        ("tpu_v6e", (1, 2), "TPU v6 lite", 1),
    ],
)
def test_devices_of_a_target(text: str, shape: tuple[int, int], kind: str, processes: int):
    device = parse_target(text).device
    if missing := lacks(device):
        pytest.skip(missing)
    mesh = target_mesh(text, shape)
    assert mesh.devices.shape == shape
    assert {x.device_kind for x in mesh.devices.flat} == {kind}
    assert len({x.process_index for x in mesh.devices.flat}) == processes
    assert device_like(kind).name == device


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [("h100", "h100:8", "D times M = 8, the devices of --target=h100:8, got 1x4"),
     ("tpu_v5e", "tpu_v5e:4x4", "D times M = 16, the devices of --target=tpu_v5e:4x4, got 1x4")],
)  # fmt: skip
def test_a_mesh_that_is_not_that_of_the_target(
    name: str, text: str, words: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(targets, "_is_installed", lambda module: True)
    with pytest.raises(UserError, match=f"--mesh: expected DxM with {words}"):
        target_mesh(text, (1, 4))


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
    assert operations(program_of(compiled))[f"custom-call {kernel}"] == 3
    assert f"{TOKENS},{TOKENS}" not in (compiled.as_text() or "")


@pytest.mark.parametrize("name", EACH)
def test_a_step_for_a_target(name: str, tmp_path: Path):
    kept = tmp_path / "step.json"
    flags = "--preset=small", "--table_rows=5000,90", "--top_mlp=8,1", f"--target={name}:4"
    result = run(*flags, "--mesh=2x2", f"--json={kept}", program=("-m", "dlrm_jax", "compile"))
    assert result.returncode == 0, result.stderr[-2000:]
    kind = {"h100": "NVIDIA H100 80GB HBM3", "tpu_v5e": "TPU v5 lite"}[name]
    assert f"mesh 2x2: 4 x {kind}" in result.stdout
    found = json.loads(kept.read_text(encoding="utf-8"))
    assert found["device"] == kind
    assert found["compiled_bytes"] == found["planned_bytes"] != {}
    assert found["copies_of_tables"] == found["not_updated_in_place"] == []
    assert sum(found["kernels"]["once"].values()) > 20
    assert re.search(
        rf"^all +{sum(found['kernels']['once'].values())} +"
        rf"{sum(found['kernels']['in_loops'].values())}$",
        result.stdout,
        re.M,
    )
    assert sum(x["number"] for x in found["products"]) == found["kernels"]["once"]["product"]
    nbytes = Counter[str]()
    for each in found["overlaps"]:
        nbytes[each["kind"]] += each["nbytes"]
    assert nbytes == found["compiled_bytes"]
    sums = [x for x in found["overlaps"] if x["kind"] == "all-reduce"]
    of_dense_gradients = max(sums, key=lambda x: x["nbytes"])
    assert (of_dense_gradients["kernels"] > 0) == (name == "h100"), "tables are updated meanwhile"


@pytest.mark.parametrize("name", EACH)
def test_parts_of_sums_for_a_target(name: str):
    """TPUs' compiler makes other collectives of some, which the command counts."""
    flags = "--preset=small", "--table_rows=500,90", "--top_mlp=8,1", f"--target={name}"
    split = "--shard_dense_optimizer", "--mesh=2x2"
    result = run(*flags, *split, program=("-m", "dlrm_jax", "compile"))
    assert result.returncode == 0, result.stderr[-2000:]
    replaced = "note: XLA's compiler for TPUs makes all-reduces" in result.stdout
    assert replaced == (name == "tpu_v5e")


@pytest.mark.thorough
def test_a_step_that_does_not_fit_into_a_tpu():
    if missing := lacks("tpu_v5e"):
        pytest.skip(missing)
    flags = "--preset=small", "--table_rows=500,90", "--top_mlp=4096,1", "--batch_size=2097152"
    result = run(*flags, "--target=tpu_v5e", program=("-m", "dlrm_jax", "compile"))
    assert result.returncode == 2
    assert re.fullmatch(
        r"error: --target=tpu_v5e: expected a step that fits into a device's memory, got .*\n",
        result.stderr,
    )
