"""The operations of a compiled program: kernels, and what is slow on accelerators."""

from __future__ import annotations

import re
from collections import Counter

import jax

_OPERATION = re.compile(r"^\s*(?:ROOT )?\S+ = .*? ([a-z][a-z0-9-]*)\(", re.MULTILINE)
_CUSTOM = re.compile(r" custom-call\(.*custom_call_target=\"([^\"]+)\"")

_COUNTED = ("fusion", "dot", "convolution", "gather", "scatter", "sort", "while", "conditional")


def operations(compiled: jax.stages.Compiled) -> dict[str, int]:
    """The number of operations of each kind in a program's text, wherever they are.

    Operations within a fusion count, too. Of calls of kernels from elsewhere, such as those of
    Pallas and of libraries, each target counts for itself.

    Args:
        compiled: compiled program.
    """
    text = compiled.as_text()
    assert text is not None
    found = Counter(_OPERATION.findall(text))
    counts = {kind: found[kind] for kind in _COUNTED}
    for target, count in sorted(Counter(_CUSTOM.findall(text)).items()):
        counts[f"custom-call {target}"] = count
    return counts
