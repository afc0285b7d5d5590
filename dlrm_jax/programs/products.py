"""The products of matrices of a program, within fusions, too: which precision they have."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

from dlrm_jax.programs.hlo import Array, Computation, Instruction, Program, bits
from dlrm_jax.programs.kernels import custom_target

# What factors of float32 are rounded to at XLA's precisions. GPUs since the A100 multiply them as
# TF32; cuBLAS does so at the high precision, too (GetBlasComputationType in XLA's
# stream_executor/gpu/gpu_blas_lt.cc). TPUs make one, three or six products of bfloat16.
_FACTORS = {
    "gpu": {"default": "tf32", "high": "tf32", "highest": "float32"},
    "tpu": {"default": "bfloat16", "high": "bfloat16_3x", "highest": "float32"},
}
_NAMES = {"f32": "float32", "f64": "float64", "bf16": "bfloat16", "f16": "float16"}
_LOWERED = r"stablehlo\.(?:dot_general|convolution).*: \(tensor<(?:\d+x)*(\w+)>.* loc\((#loc\d+)\)"
FULL = ("float32", "float64")
"""Precisions of factors that lose nothing of a float32."""


class Product(NamedTuple):
    """What products have in common.

    Attributes:
        asked: type of the factors as the model has them.
        computed: type that factors are rounded to, such as tf32; bfloat16_3x is a sum of three
            products of bfloat16.
    """

    asked: str
    computed: str

    @property
    def loses(self) -> bool:
        """Whether float32 numbers are multiplied with less than their precision."""
        return self.asked in FULL and self.computed not in (*FULL, "tf32_3x")


def asked_types(stablehlo: str) -> dict[str, str]:
    """The type of the factors of each product of a lowered program, by the operation's name.

    Names are those within the function that has the product. If products of one name have several
    types, it is the one with the most bits.

    Args:
        stablehlo: text of the program before it is compiled, with its locations.
    """
    names = dict(re.findall(r'^(#loc\d+) = loc\("([^"]*)"', stablehlo, re.MULTILINE))
    found: dict[str, str] = {}
    for line in stablehlo.splitlines():
        factors = re.search(_LOWERED, line)
        if factors and factors[2] in names:
            name, dtype = names[factors[2]], factors[1]
            found[name] = max(found.get(name, dtype), dtype, key=bits)
    return found


def products(
    program: Program, platform: str, asked: dict[str, str]
) -> dict[Product, dict[str, int]]:
    """The numbers of products of each kind, by the name of their operation.

    What kernels of Pallas multiply isn't seen.

    Args:
        program: program.
        platform: JAX's name of the devices, such as gpu.
        asked: types of factors from `asked_types`. Products that XLA has given a name of its own
            are taken to be asked for as they are computed.
    """
    found: dict[Product, Counter[str]] = {}
    for computation in program.computations.values():
        for instruction in computation.instructions.values():
            factors = _factors(program, computation, instruction)
            if factors is None:
                continue
            dtype, name = factors.dtype, instruction.op_name
            product = Product(
                asked=_NAMES.get(asked_type := _asked(name, asked) or dtype, asked_type),
                computed=_computed(instruction, platform, dtype),
            )
            if product.asked in (*FULL, *_NAMES.values()):
                found.setdefault(product, Counter())[name or instruction.name] += 1
    return {product: dict(sorted(names.items())) for product, names in sorted(found.items())}


def _asked(name: str, asked: dict[str, str]) -> str | None:
    """The type of the factors of an operation, whose name begins with those of its callers."""
    parts = name.partition(";")[0].split("/")
    tails = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((asked[tail] for tail in tails if tail in asked), None)


def _factors(program: Program, computation: Computation, instruction: Instruction) -> Array | None:
    """The first factor of a product; None for other instructions."""
    is_product = instruction.opcode in ("dot", "convolution") or (
        instruction.opcode == "custom-call" and _is_of_library(instruction)
    )
    if not is_product:
        return None
    return computation.instructions[instruction.operands[0]].arrays[0]


def _is_of_library(call: Instruction) -> bool:
    return custom_target(call).startswith(("__cublas$", "__cudnn$conv", "__onednn$matmul"))


def _computed(instruction: Instruction, platform: str, dtype: str) -> str:
    """What the factors of a product are rounded to."""
    attributes = instruction.attributes
    algorithm = re.search(r'algorithm"?[=:]"?(?:ALG_)?(dot_\w+)', attributes, re.IGNORECASE)
    if algorithm and algorithm[1].lower() != "dot_unset":
        parts = algorithm[1].lower().split("_")
        times = f"_{parts[-1][1:]}x" if re.fullmatch(r"x\d", parts[-1]) else ""
        return _NAMES.get(parts[1], parts[1]) + times
    if dtype != "f32" or platform not in _FACTORS:
        return _NAMES.get(dtype, dtype)
    of_operands = re.search(r"operand_precision=\{(\w+)", attributes) or re.search(
        r'"operand_precision":\["(\w+)"', attributes
    )
    return _FACTORS[platform][of_operands[1].lower() if of_operands else "default"]
