from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Float, TypeCheckError
from type_checks import checked

from dlrm_jax.data.arrays import Examples
from dlrm_jax.embedding.checksum import checksum
from dlrm_jax.training.losses import bce

EXAMPLES = Examples(
    np.zeros((2, 3), np.float32), np.zeros((2, 1), np.int32), np.zeros(2, np.float32)
)

Vector = Float[np.ndarray, " N"]


@checked
@dataclasses.dataclass
class Firsts:
    count: int

    @checked
    def of(self, x: Vector) -> Vector:
        return x[: self.count]

    @staticmethod
    @checked
    def half(x: float) -> float:
        return x / 2


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (jnp.zeros(2), jnp.zeros(3)),
        (jnp.zeros((2, 1)), jnp.zeros(2)),
        (jnp.zeros(2), jnp.zeros(2, jnp.int32)),
        (np.zeros(2), jnp.zeros(2)),
    ],
    ids=["lengths", "ranks", "dtype", "array of NumPy"],
)
def test_functions_of_the_package_refuse_other_arrays(logits, labels):
    bce(jnp.zeros(2), jnp.zeros(2))
    bce(jnp.zeros(3), jnp.zeros(3))
    with pytest.raises(TypeCheckError, match="bce"):
        bce(logits, labels)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("dense", np.zeros((3, 3), np.float32)),
        ("dense", np.zeros((2, 3))),
        ("ids", np.zeros(2, np.int32)),
        ("sample_weights", [1.0, 1.0]),
    ],
)
def test_dataclasses_of_the_package_refuse_other_arrays(name, array):
    with pytest.raises(TypeCheckError, match="Examples"):
        dataclasses.replace(EXAMPLES, **{name: array})


def test_axes_may_be_arguments():
    assert checksum(jnp.zeros(3), words=1).shape == (1,)


def test_methods_refuse_results_of_another_length():
    firsts = Firsts(2)
    assert len(firsts.of(np.zeros(2))) == 2
    with pytest.raises(TypeCheckError, match="of"):
        firsts.of(np.zeros(3))


def test_an_int_is_a_float_but_not_the_other_way():
    assert Firsts.half(3) == 1.5
    with pytest.raises(TypeCheckError, match="count"):
        Firsts(2.0)  # pyright: ignore[reportArgumentType]
