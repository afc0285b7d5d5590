"""The dense model as a program: StableHLO that any machine runs, without the model's class.

A program is ``(layers, dense, vectors) -> logits``: arrays of the model by name, dense features
[B, D], and the vectors of all lookups side by side, [B, W], all float32. It computes, and can do
nothing else: it calls no function of the machine that runs it.
"""

from __future__ import annotations

import concurrent.futures
import re
import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from dlrm_jax.errors import UserError, shortened

PLATFORMS = ("cpu", "cuda", "tpu")
BATCH_SIZES = (1, 16, 256, 8192)
"""The batch sizes of programs where the model's code takes no symbol for it."""

# JAX checks shapes so, and splits arrays so: no function is called.
_HARMLESS = {"shape_assertion", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"}

T = TypeVar("T")

Logits = Callable[[Any, Any, Any], Any]
"""A function of layers, dense features [B, D] and vectors [B, W]."""


def export_programs(
    logits: Logits,
    layers: Mapping[str, np.ndarray],
    dense_features: int,
    width: int,
) -> dict[int | None, bytes]:
    """Compiles a function to StableHLO for all platforms.

    Args:
        logits: function of JAX.
        layers: arrays of the model by name; only shapes and dtypes matter.
        dense_features: number of dense features.
        width: numbers of an example's vectors.

    Returns:
        One program for any batch size, under None; or one for each of `BATCH_SIZES`, if the
        function's code needs the number.

    Raises:
        UserError: the function calls code of this machine, or JAX can't export it.
    """
    (symbol,) = jax.export.symbolic_shape("batch")
    try:
        return {None: _without_frames(_export, logits, layers, dense_features, width, symbol)}
    except UserError:
        raise
    # Whatever a model's code does with a number that isn't known; without symbols it may go well.
    except Exception:
        pass
    try:
        return {
            size: _without_frames(_export, logits, layers, dense_features, width, size)
            for size in BATCH_SIZES
        }
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the model can't be exported by jax.export: {shortened(str(error))}"
        ) from error


def _export(
    logits: Logits,
    layers: Mapping[str, np.ndarray],
    dense_features: int,
    width: int,
    batch: Any,
) -> bytes:
    arguments = (
        {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in layers.items()},
        jax.ShapeDtypeStruct((batch, dense_features), jnp.float32),
        jax.ShapeDtypeStruct((batch, width), jnp.float32),
    )
    # GPUs and TPUs would round float32's products to 10 or 8 bits.
    with jax.default_matmul_precision("highest"):
        exported = jax.export.export(jax.jit(logits), platforms=PLATFORMS)(*arguments)
    check_calls(exported.mlir_module())
    return bytes(exported.serialize())


def check_calls(stablehlo: str) -> None:
    """Checks that a program calls no function of the machine that runs it.

    Raises:
        UserError: it does; the message names the first.
    """
    called = re.findall(r"custom_call\s*@([\w$.]+)|call_target_name\s*=\s*\"([^\"]+)\"", stablehlo)
    for name in ("".join(names) for names in called):
        if name not in _HARMLESS:
            raise UserError(
                f"expected a program that computes alone, but it calls {shortened(name)}, which "
                f"other machines may not have; leave out what calls it in the model's class"
            )


class DenseProgram:
    """A program that was read.

    `read` gives a shared one.

    Args:
        content: the program, as `export_programs` gives it.

    Raises:
        UserError: it isn't one, is for other devices, or calls functions of this machine.
    """

    def __init__(self, content: bytes):
        try:
            exported = _without_frames(jax.export.deserialize, bytearray(content))
        except Exception as error:  # a parser's of damaged bytes
            raise UserError(f"it is no program: {shortened(str(error))}") from error
        check_calls(exported.mlir_module())
        lacks = [x for x in PLATFORMS if x not in exported.platforms]
        if lacks or exported.nr_devices != 1:
            raise UserError(
                f"expected a program for one device of {', '.join(PLATFORMS)}, it is for "
                f"{exported.nr_devices} of {', '.join(exported.platforms)}"
            )
        self._exported = exported
        self._call = jax.jit(exported.call)

    @classmethod
    def read(cls, content: bytes) -> DenseProgram:
        """A program, shared by all who read the same bytes, and compiled once for them.

        Versions of a model differ in layers and tables, which are arguments of the program. So a
        server compiles nothing for a new version. A compiler takes time from requests, and leaves
        free memory in pieces, so that a server under load grows with each version. Besides, JAX
        keeps the functions of the last 4096 calls that it traced, ten for each version.

        Args:
            content: the program, as `export_programs` gives it.

        Raises:
            UserError: see the class.
        """
        program = _IN_USE.get(content)
        if program is None:
            program = _IN_USE.setdefault(content, cls(content))
        return program

    @property
    def is_float32(self) -> bool:
        """Whether no number of it is rounded to a shorter one, such as bfloat16 or int8."""
        return not re.search(r"[x<](?:bf16|f16|f8\w+|u?i8)>", self._exported.mlir_module())

    def check(
        self,
        batch_size: int | None,
        layers: Mapping[str, tuple[tuple[int, ...], str]],
        dense_features: int,
        width: int,
        labels: int,
    ) -> None:
        """Checks that the program is a function of these arrays, and gives logits.

        Args:
            batch_size: number of examples; None for any.
            layers: shape and dtype of each array of the model.
            dense_features: number of dense features.
            width: numbers of an example's vectors.
            labels: number of labels; 0 or 1 for one logit an example.

        Raises:
            UserError: it is another function.
        """
        batch = str(batch_size) if batch_size else "batch"
        inputs = (
            {name: _text(shape, dtype) for name, (shape, dtype) in layers.items()},
            _text((batch, dense_features), "float32"),
            _text((batch, width), "float32"),
        )
        leaves, tree = jax.tree.flatten((inputs, {}))
        given = [_text(x.shape, x.dtype) for x in self._exported.in_avals]
        output = _text((batch, labels) if labels > 1 else (batch,), "float32")
        outputs = [_text(x.shape, x.dtype) for x in self._exported.out_avals]
        if (given, self._exported.in_tree, outputs) != (leaves, tree, [output]):
            wrong, right = _differing(given, leaves), _differing(leaves, given)
            raise UserError(
                f"expected a program of {right} that gives {output}, it is one of {wrong} that "
                f"gives {', '.join(outputs)}; other arrays are alike"
            )

    def __call__(
        self, layers: Any, dense: Float32[Any, "B D"], vectors: Float32[Any, "B W"]
    ) -> Float32[Any, "B *_"]:
        """The logits; compiled once for each number of examples."""
        return self._call(layers, dense, vectors)


_IN_USE: weakref.WeakValueDictionary[bytes, DenseProgram] = weakref.WeakValueDictionary()
"""The programs that are in use, by their bytes."""


def _without_frames(function: Callable[..., T], *arguments: Any) -> T:
    """The value of a function that another thread calls.

    A program names the frames that it was traced in: without those that lead here, equal models
    have equal bytes, whoever exports them.

    JAX keeps the frames that lead to a symbolic shape until Python looks for cycles; the
    variables of these include models that aren't served any more.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *arguments).result()


def _text(shape: tuple[Any, ...], dtype: Any) -> str:
    """A shape and type, such as ``float32[batch, 3]``."""
    return f"{dtype}[{', '.join(map(str, shape))}]"


def _differing(arrays: list[str], others: list[str]) -> str:
    """The arrays that the others don't have, for a message."""
    return shortened(", ".join(x for x in arrays if x not in others) or "arrays with other names")
