"""Values in messages are short, whatever came."""

from __future__ import annotations

from typing import Any

import pytest

from dlrm_jax.errors import cut, shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a'b", '"a\'b"'),
        ("x" * 1000, "'" + "x" * 99 + "…"),
        (b"x" * 1000, "b'" + "x" * 98 + "…"),
        ([1] * 1000, "[" + "1, " * 33 + "…"),
        (None, "None"),
    ],
)
def test_values(value: Any, text: str):
    assert shown(value) == text


def test_values_that_python_does_not_write():
    assert shown(10**5000) == "int that is too long to be written"


def test_texts():
    assert (cut("abc", 3), cut("abcd", 3)) == ("abc", "abc…")
