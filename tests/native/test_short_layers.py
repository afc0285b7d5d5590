"""Native layers in int8 and bfloat16 against NumPy, by each instruction path of the processor."""

from __future__ import annotations

import ctypes
import functools
import itertools
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from dlrm_jax.native import dense_model, library
from dlrm_jax.native.compiler import compiler
from dlrm_jax.native.dense_model import DenseModel, Layer, Quantization
from dlrm_jax.serving.layer_quantization import Levels, quantize_layer

SOURCE = Path(library.__file__).parent / "dense_model.cc"
TILES = Path(__file__).parent / "emulated_tiles.h"
OPTIONS = "-std=c++17 -O1 -fno-math-errno -pthread -fPIC -shared -Wno-psabi"
PATHS = {
    "native": (),
    "plain": ("-march=x86-64",),
    "avx2": ("-march=x86-64-v3",),
    "avx512": ("-march=x86-64-v4",),
    "vnni": ("-march=x86-64-v4", "-mavx512vnni"),
    "avx-vnni": ("-march=x86-64-v3", "-mavxvnni"),
    "tiles": ("-march=x86-64-v4", "-mavx512bf16", "-include", str(TILES)),
}
NEEDED = {
    "avx2": {"avx2"}, "avx512": {"avx512bw"}, "vnni": {"avx512_vnni"}, "avx-vnni": {"avx_vnni"},
    "tiles": {"avx512_bf16"},
}  # fmt: skip
MLPS = (
    ((13, 367, 17), (31, 1)),
    ((1, 1, 7), (1,)),
    ((0, 13), (367, 2, 1)),
    ((367, 64, 65), (1,)),
    ((23, 31), (32, 97, 1)),
)
ROWS = (0, 1, 13, 32, 33, 367)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ctypes.CDLL]:
    """A function that compiles the dense model for one of `PATHS`."""
    directory = tmp_path_factory.mktemp("paths")

    @functools.cache
    def compile_for(path: str) -> ctypes.CDLL:
        if path == "native":
            return library.functions()
        made = directory / f"{path}.so"
        command = [
            *compiler(),
            *OPTIONS.split(),
            *PATHS[path],
            str(SOURCE),
            "-o",
            str(made),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr
        return ctypes.CDLL(str(made))

    return compile_for


@pytest.fixture(params=PATHS)
def path(
    request: pytest.FixtureRequest,
    compiled: Callable[[str], ctypes.CDLL],
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """An instruction path, which models take; those that the processor lacks are compiled alone."""
    functions = compiled(request.param)
    if NEEDED.get(request.param, set()) - flags():
        pytest.skip(f"the processor has no {request.param}; it was compiled")
    monkeypatch.setattr(dense_model, "library", SimpleNamespace(functions=lambda: functions))
    return request.param


def flags() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return set(next(x for x in lines if x.startswith("flags")).split())


def drawn(widths: Sequence[int], last_relu: bool, extreme: bool, rng: np.random.Generator):
    """Layers in int8; sums of two products of extreme ones take 17 bits."""
    for i, (fan_in, out) in enumerate(itertools.pairwise(widths)):
        levels = Levels(np.float32(rng.uniform(20, 90)), int(rng.integers(-128, 128)))
        kernel = rng.normal(0, max(fan_in, 1) ** -0.5, (fan_in, out)).astype(np.float32)
        made = quantize_layer(kernel, rng.normal(0.2, 0.2, out).astype(np.float32), levels)
        integers = made.kernel
        if extreme:
            integers = rng.choice(np.array([-128, 127], np.int8), integers.shape)
        relu = last_relu or i + 2 < len(widths)
        own = Quantization(made.scale, float(levels.levels), levels.zero)
        yield Layer(integers, made.bias, relu, own)


def int8_mlp(x: np.ndarray, layers: Sequence[Layer]) -> np.ndarray:
    for layer in layers:
        own = layer.quantization
        assert own is not None
        scaled = (x * np.float32(own.levels)).astype(np.float64)
        integers = np.rint(np.clip(scaled, -128 - own.zero, 127 - own.zero)) + own.zero
        sums = integers.astype(np.int64) @ layer.kernel.astype(np.int64) + layer.bias
        sums = np.maximum(sums, 0) if layer.relu else sums
        assert np.abs(sums).max(initial=0) < 2**31
        x = sums.astype(np.float32) * own.scale
    return x


def logits_of(model: DenseModel, dense: np.ndarray, vectors: np.ndarray, threads: int = 1):
    out = np.empty(len(dense), np.float32)
    model(dense, vectors, out, threads)
    return out


@pytest.mark.parametrize("extreme", [False, True])
def test_int8_has_the_bits_of_numpy(path: str, extreme: bool):
    """Without vectors that interact, whose products are float32."""
    for seed, (bottoms, tops) in enumerate(MLPS):
        rng = np.random.default_rng(seed)
        bottom = list(drawn(bottoms, True, extreme, rng))
        top = list(drawn((bottoms[-1], *tops), False, extreme, rng))
        model = DenseModel(bottom, top, [], False)
        dense = rng.normal(0, 2, (max(ROWS), bottoms[0])).astype(np.float32)
        expected = int8_mlp(int8_mlp(dense, bottom), top)[:, 0]
        if bottoms[0] > 1 and not extreme:
            assert len(np.unique(expected)) > 5, "nothing to compare"
        for count, threads in itertools.product(ROWS, (1, 2)):
            found = logits_of(model, dense[:count], np.zeros((count, 0), np.float32), threads)
            assert np.array_equal(found, expected[:count]), (path, bottoms, tops, count)


@pytest.mark.parametrize("precision", [jnp.bfloat16, np.int8])
def test_other_precisions_are_near_float32(path: str, precision: type):
    """Also where layers of several precisions follow each other; by several threads the same."""
    rng = np.random.default_rng(3)
    dense = rng.normal(size=(129, 13)).astype(np.float32)
    vectors = rng.normal(0, 0.3, (129, 6 * 17)).astype(np.float32)

    def layers(
        widths: Sequence[int], last_relu: bool, short: Sequence[int]
    ) -> tuple[list[Layer], list[Layer]]:
        exact, given = [], []
        for i, (fan_in, out) in enumerate(itertools.pairwise(widths)):
            kernel = rng.normal(0, fan_in**-0.5, (fan_in, out)).astype(np.float32)
            bias = rng.uniform(0, 0.5, out).astype(np.float32)
            exact.append(Layer(kernel, bias, last_relu or i + 2 < len(widths)))
            levels = Levels.of_range(-4, 4)
            if i not in short:
                given.append(exact[-1])
            elif precision == np.int8:
                made = quantize_layer(kernel, bias, levels)
                own = Quantization(made.scale, float(levels.levels), levels.zero)
                given.append(Layer(made.kernel, made.bias, exact[-1].relu, own))
            else:
                given.append(exact[-1]._replace(kernel=kernel.astype(jnp.bfloat16)))
        return exact, given

    for short in ((0, 1, 2), (0, 2), (1,)):
        pairs = layers((13, 37, 17), True, short), layers((17 + 21, 97, 31, 1), False, short)
        exact, given = (
            DenseModel(x, y, range(0, 102, 17), False) for x, y in zip(*pairs, strict=True)
        )
        expected = logits_of(exact, dense, vectors)
        found = logits_of(given, dense, vectors)
        assert np.ptp(expected) > 1, "nothing to compare"
        difference = np.abs(found - expected).max()
        assert 1e-5 < difference < (0.15 if precision == np.int8 else 0.03), (path, short)
        assert np.array_equal(found, logits_of(given, dense, vectors, 2))
        assert np.array_equal(found[:13], logits_of(given, dense[:13], vectors[:13]))
        lost, several = dense.copy(), vectors.copy()
        lost[3, 12], several[5, 101], lost[9, 0] = np.nan, np.nan, np.inf
        rows = np.flatnonzero(~np.isfinite(logits_of(given, lost, several)))
        assert {3, 5} <= {*rows.tolist()} <= {3, 5, 9}


def test_what_int8_needs_is_checked():
    rng = np.random.default_rng(0)
    (layer,) = drawn((3, 1), False, False, rng)
    own = layer.quantization
    assert own is not None
    for wrong, message in (
        (layer._replace(quantization=None), "of int8 with biases of int32 and a quantization"),
        (layer._replace(bias=layer.bias.astype(np.float32)), "got int8 of shape .* and float32"),
        (layer._replace(kernel=layer.kernel.astype(np.float32)), "got float32 of shape"),
        (layer._replace(kernel=layer.kernel.astype(np.int16)), "got int16 of shape"),
        (layer._replace(quantization=own._replace(scale=np.ones(2, np.float32))), "float32 scale"),
    ):
        with pytest.raises(ValueError, match=message):
            DenseModel([wrong], [layer], [], False)
