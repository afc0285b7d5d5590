"""The native dense model against NumPy in float64, and artifacts that predict by it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import copy
import dataclasses
import inspect
import itertools
import pickle
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from in_memory import InMemory
from large_sums import predict_in_another_order, write_large_sums
from saved_run import examples

from dlrm_jax.artifact.artifact import Artifact
from dlrm_jax.artifact.dense_program import DenseProgram
from dlrm_jax.config import Config
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.native import quantized_rows
from dlrm_jax.native.dense_model import DenseModel, Layer
from dlrm_jax.serving.export import export
from dlrm_jax.serving.served_model import Rows, ServedModel, examples_of
from dlrm_jax.serving.served_version import Observer
from dlrm_jax.serving.verify import NATIVE, PROGRAM, verify

ROWS = (0, 1, 2, 63, 64, 65, 513)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A dense model, beside each of whose vectors are three numbers that aren't read."""

    bottom: list[Layer]
    top: list[Layer]
    columns: list[int]
    self_interaction: bool

    @classmethod
    def of(cls, bottom: Sequence[int], top: Sequence[int], vectors: int, own: bool) -> Drawn:
        dim, count = bottom[-1], vectors + 1
        width = dim + len(np.tril_indices(count, 0 if own else -1)[0])
        rng = np.random.default_rng(count)

        def layers(widths: Sequence[int], last_relu: bool) -> list[Layer]:
            return [
                Layer(
                    rng.normal(0, max(i, 1) ** -0.5, (i, j)).astype(np.float32),
                    rng.uniform(0, 0.5, j).astype(np.float32),
                    last_relu or layer + 2 < len(widths),
                )
                for layer, (i, j) in enumerate(itertools.pairwise(widths))
            ]

        columns = [(vectors - 1 - i) * (dim + 3) for i in range(vectors)]
        return cls(layers(bottom, True), layers((width, *top, 1), False), columns, own)

    @property
    def native(self) -> DenseModel:
        return DenseModel(self.bottom, self.top, self.columns, self.self_interaction)

    def draw(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Dense features and vectors of some samples."""
        dim = len(self.bottom[-1].bias)
        rng = np.random.default_rng(count)
        sizes = len(self.bottom[0].kernel), len(self.columns) * (dim + 3)
        dense, vectors = (rng.normal(size=(count, x)).astype(np.float32) for x in sizes)
        return dense, vectors / np.float32(dim**0.5)

    def expected(self, dense: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        x = mlp(dense.astype(np.float64), self.bottom)
        dim = x.shape[1]
        stack = np.stack([x, *(vectors[:, i : i + dim] for i in self.columns)], axis=1)
        i, j = np.tril_indices(stack.shape[1], 0 if self.self_interaction else -1)
        products = (stack @ stack.transpose(0, 2, 1))[:, i, j]
        return mlp(np.concatenate([x, products], axis=1), self.top)[:, 0]


def mlp(x: np.ndarray, layers: list[Layer]) -> np.ndarray:
    for layer in layers:
        x = x @ layer.kernel.astype(np.float64) + layer.bias
        x = np.maximum(x, 0) if layer.relu else x
    return x


def logits_of(model: DenseModel, dense: np.ndarray, vectors: np.ndarray, threads: int = 2):
    out = np.empty(len(vectors), np.float32)
    model(dense, vectors, out, threads)
    return out


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    ("bottom", "top", "vectors"),
    [
        ((13, 17, 16), (17, 13), 26),  # 367 inputs of the top MLP
        ((0, 1), (5,), 3),  # without dense features
        ((1, 367, 17), (), 2),
        ((17, 13), (367,), 0),
    ],
)
def test_logits(bottom: tuple[int, ...], top: tuple[int, ...], vectors: int, own: bool):
    drawn = Drawn.of(bottom, top, vectors, own)
    dense, given = drawn.draw(max(ROWS))
    whole = logits_of(model := drawn.native, dense, given)
    expected = drawn.expected(dense, given)
    assert np.ptp(expected) > 0.1, "nothing to compare"
    np.testing.assert_allclose(whole, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    for count, threads in itertools.product(ROWS, (1, 2, 2**64)):
        found = logits_of(model, dense[:count], given[:count], threads)
        assert np.array_equal(found, whole[:count]), "the same bits in any batch, by any threads"


def test_a_number_that_is_none_stays():
    drawn = Drawn.of((3, 5), (4,), 2, False)
    dense, given = drawn.draw(20)
    dense[7, 1] = given[11, 0] = np.nan
    assert np.flatnonzero(np.isnan(logits_of(drawn.native, dense, given))).tolist() == [7, 11]


def test_copies_have_their_own_weights():
    drawn = Drawn.of((3, 5), (4,), 2, True)
    arguments = drawn.draw(9)
    copies = [
        make(drawn.native) for make in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x)))
    ]
    for each in copies:
        assert np.array_equal(logits_of(each, *arguments), logits_of(drawn.native, *arguments))


def test_arrays_that_do_not_fit_are_refused():
    drawn = Drawn.of((3, 5), (4,), 2, False)
    (first, last), columns = drawn.top, drawn.columns
    for bottom, top, places, message in (
        (drawn.bottom, [first], columns, "top MLP of 8 inputs and 1 output, got 8 and 4"),
        (drawn.bottom, drawn.top, [0], "top MLP of 6 inputs and 1 output, got 8 and 1"),
        (drawn.bottom, drawn.top, [0, -1], r"columns from 0 on, got \[0, -1\]"),
        (drawn.bottom, [last, last], columns, r"fit each other, got kernels of shape \(4, 1\)"),
        (drawn.bottom, [first, first._replace(bias=last.bias)], columns, "a bias for each output"),
        (drawn.bottom, [first._replace(bias=last.kernel)], columns, r"biases \[out\] of float32"),
        ([], drawn.top, columns, "at least one layer"),
    ):
        with pytest.raises(ValueError, match=message):
            DenseModel(bottom, top, places, False)
    model, (dense, given) = drawn.native, drawn.draw(4)
    call = inspect.unwrap(DenseModel.__call__)  # types are checked in tests alone
    for wrong, message in (
        ((dense[:, :2], given), r"dense: .* of shape \(4, 3\), got float32 of shape \(4, 2\)"),
        ((dense[:3], given), r"dense: .* of shape \(4, 3\)"),
        ((dense, given[:, :12]), r"vectors: .* of shape \(4, 13\), got float32 of shape \(4, 12\)"),
        ((np.asfortranarray(dense), given), "dense: expected contiguous"),
    ):
        with pytest.raises(ValueError, match=message):
            call(model, *wrong, np.empty(4, np.float32), 1)
    with pytest.raises(ValueError, match=r"out: .* of shape \(4,\)"):
        call(model, dense, given, np.empty(3, np.float32), 1)


CONFIG = Config(
    table_rows=(9, 30, 30),
    bag_lengths=(1, 3, 2),
    embedding_dim=13,
    dense_features=3,
    bottom_mlp=(17, 13),
    top_mlp=(33, 1),
    pooling="mean",
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("exported") / "artifact"
    export(InMemory.of(CONFIG), directory, "native", "float32")
    return directory


def test_an_artifact_predicts_what_its_program_does(
    exported: Path, monkeypatch: pytest.MonkeyPatch
):
    native = Artifact.load(exported)
    assert repr(native) == "artifact native of 3 tables in float32, layers by native kernels"
    found = verify(exported).golden
    assert [*found] == [NATIVE, PROGRAM]
    assert found[NATIVE].difference == 0 < found[PROGRAM].difference < 1e-6
    without = dataclasses.replace(native.manifest, dense_layers=None)  # of earlier versions
    assert Artifact.open(exported, without).native is None
    monkeypatch.setattr(quantized_rows, "available", lambda: False)
    program = Artifact.load(exported)
    assert repr(program) == "artifact native of 3 tables in float32"
    found = verify(exported).golden
    assert [*found] == [PROGRAM]
    assert found[PROGRAM].difference < 1e-6
    day = examples(40, config=CONFIG).days[0]
    dense, ids = day.dense, np.array(day.ids)
    ids[:, 1:4] = ids[0, 1:4]
    wanted = program.logits(dense, ids)
    for shared in ((), ("C2",)):
        found = native.logits(dense, ids, shared=shared)
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6 * np.abs(wanted).max())
        assert found.dtype == wanted.dtype == np.float32
    assert native.logits(dense[:0], ids[:0]).shape == (0,)
    found = native.logits(dense[::2], ids[::2])
    np.testing.assert_allclose(found, wanted[::2], rtol=1e-6, atol=1e-6 * np.abs(wanted).max())


def test_served_predictions_and_nothing_is_compiled(
    exported: Path, monkeypatch: pytest.MonkeyPatch
):
    day = examples(20, config=CONFIG).days[0]
    rows = Rows(examples_of(day.dense, np.asarray(day.ids)))

    def answer() -> np.ndarray:
        predictor = Predictor.load(exported, batch_size=16)
        served = ServedModel("1", predictor, 16, 100, Observer())
        if not predictor.batch_sizes:
            served.warm_up()
        with contextlib.closing(served):
            return served.submit(rows, 60).result()

    with monkeypatch.context() as patch:
        patch.setattr(DenseProgram, "__call__", Mock(side_effect=AssertionError))
        found = answer()
    monkeypatch.setattr(quantized_rows, "available", lambda: False)
    np.testing.assert_allclose(found, answer(), rtol=1e-6)


def test_many_layers():
    one = Layer(np.ones((1, 1), np.float32), np.zeros(1, np.float32), False)
    model = DenseModel([one] * 128, [one] * 128, [], False)
    out = np.zeros(1, np.float32)
    model(np.full((1, 1), 4, np.float32), np.zeros((1, 0), np.float32), out, 1)
    assert out[0] == 4


def test_models_that_are_made_at_the_same_time_have_their_own_weights():
    def make(value: float) -> None:
        layer = Layer(np.full((1, 1), value, np.float32), np.zeros(1, np.float32), False)
        out = np.zeros(1, np.float32)
        for _ in range(300):
            model = DenseModel([layer] * 3, [layer], [], False)
            model(np.ones((1, 1), np.float32), np.zeros((1, 0), np.float32), out, 1)
            assert out[0] == value**4

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(make, (1.0, 2.0, 3.0, 4.0)))


def test_no_threads_are_refused():
    one = Layer(np.ones((1, 1), np.float32), np.zeros(1, np.float32), False)
    model, array = DenseModel([one], [one], [], False), np.ones((1, 1), np.float32)
    with pytest.raises(ValueError, match="threads: expected 1 or more, got 0"):
        model(array, array, array[0], 0)


def test_an_artifact_of_large_sums_is_whole(tmp_path: Path):
    """Kernels and program sum in different orders, and the sums are much larger than a logit."""
    write_large_sums(directory := tmp_path / "artifact")
    predict_in_another_order(directory)
    assert Artifact.load(directory).native, "nothing to compare"
    verify(directory)
