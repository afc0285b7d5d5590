"""Text files are UTF-8 wherever the program runs, not what the locale says."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
_TEXT = {"read_text", "write_text"}


def test_each_text_file_has_an_encoding():
    left = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in sorted((ROOT / "dlrm_jax").rglob("*.py"))
        for call in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(call, ast.Call) and _is_without(call)
    ]
    assert left == []


def _is_without(call: ast.Call) -> bool:
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    return method in _TEXT and all(keyword.arg != "encoding" for keyword in call.keywords)
