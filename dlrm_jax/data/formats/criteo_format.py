"""Formats lines in Criteo's layout without Python code per line.

A chunk of lines is a matrix of bytes in which every field has its full width. Unused bytes of
short and empty fields are NUL, and all NULs are deleted at the end.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int32, UInt32

from dlrm_jax.data.formats.criteo_text import CATEGORICALS, INTEGERS

EMPTY = -2
"""Code of an empty integer field."""
LARGEST_INTEGER = 99_999
"""The largest integer that fits into a field; the smallest is -1."""

MAY_BE_EMPTY = frozenset((2, 3, 5, 11, 15, 18, 19, 20, 21, 23, 24, 25))
"""Categorical features (from 0) whose id 0 is written as an empty field: those that have empty
fields in Criteo's Kaggle data. In most of these, the empty field is the most frequent value.
"""

_INTEGER_BYTES = 8


def mix(ids: Int32[np.ndarray, "..."], salt: int) -> UInt32[np.ndarray, "..."]:
    """Scatters ids over all 32-bit numbers; distinct ids stay distinct.

    It applies the finalizer of MurmurHash3, a bijection, to the ids plus a multiple of `salt`, a
    small number from 0 on.
    """
    x = ids.astype(np.uint32) + np.uint32((salt + 1) * 0x9E3779B1 & 0xFFFFFFFF)
    x ^= x >> np.uint32(16)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    return x


class LineFormatter:
    """Formats examples as raw lines; it reuses its buffer from chunk to chunk.

    A line is the label, 13 integers and 26 categoricals of 8 hexadecimal digits each, separated by
    tabs and ended by a line feed. An id has the same value wherever it occurs. Distinct ids of a
    feature have distinct values; for the features in `MAY_BE_EMPTY` one of them is the empty field.
    """

    def __init__(self) -> None:
        # The text of every integer from `EMPTY` on. NumPy fills up with NUL. One number is copied
        # faster than as many bytes.
        texts = ["", *map(str, range(EMPTY + 1, LARGEST_INTEGER + 1))]
        self._integers = np.array(texts, f"S{_INTEGER_BYTES}").view(f"u{_INTEGER_BYTES}")
        self._hexadecimal = np.frombuffer(
            b"".join(b"%04x" % number for number in range(1 << 16)), np.uint32
        )
        self._lines = np.zeros(0, _LINE)

    def __call__(
        self,
        labels: Int32[np.ndarray, " N"],
        integers: Int32[np.ndarray, "N 13"],
        ids: Int32[np.ndarray, "N 26"],
    ) -> bytes:
        """Formats N examples.

        Labels are 0 or 1, integers from -1 to `LARGEST_INTEGER` or `EMPTY`, and ids at least 0.
        """
        if len(self._lines) < len(labels):
            self._lines = np.zeros(len(labels), _LINE)
            self._lines.view("u1")[:] = ord("\t")  # stays between the fields
            self._lines["end"] = ord("\n")
        lines = self._lines[: len(labels)]
        lines["label"] = labels + ord("0")
        for feature in range(len(INTEGERS)):
            lines[f"I{feature}"] = self._integers[integers[:, feature] - EMPTY]
        for feature in range(len(CATEGORICALS)):
            values = mix(ids[:, feature], feature)
            high = self._hexadecimal[values >> np.uint32(16)]
            low = self._hexadecimal[values & np.uint32(0xFFFF)]
            if feature in MAY_BE_EMPTY:
                absent = ids[:, feature] == 0
                high[absent], low[absent] = 0, 0
            lines[f"C{feature} high"], lines[f"C{feature} low"] = high, low
        return lines.tobytes().translate(None, b"\0")


def _line() -> np.dtype[np.void]:
    """The fields of a line as one packed record."""
    fields = [("label", "u1")]
    for feature in range(len(INTEGERS)):
        fields += [(f"I{feature} tab", "u1"), (f"I{feature}", f"u{_INTEGER_BYTES}")]
    for feature in range(len(CATEGORICALS)):
        fields += [(f"C{feature} tab", "u1")]
        fields += [(f"C{feature} {half}", "u4") for half in ("high", "low")]
    return np.dtype([*fields, ("end", "u1")])


_LINE = _line()
