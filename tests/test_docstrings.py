"""Docstrings name every argument, and say what it is with a noun first."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FOLLOWING = ["dlrm_jax", "experiments"]
NOT_A_NOUN = re.compile(r"(of|whose|what|that|how|which|those|as|for|from)\b", re.IGNORECASE)
SECTION = re.compile(
    r"^(Args|Attributes|Returns|Yields|Raises):\n((?:(?: {4}.*)?\n)*)", re.MULTILINE
)
ENTRY = re.compile(r"^ {4}(\*{0,2}\w+(?:, \*{0,2}\w+)*): ?(.*)$", re.MULTILINE)


def documented(tree):
    """Public classes and functions with their docstrings, methods of public classes included."""
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("_"):
            continue
        if isinstance(node, ast.ClassDef):
            yield from documented(node)
        docstring = ast.get_docstring(node)
        if docstring:
            yield node, docstring


def parameters(node):
    """The names that a caller passes to a function or a class."""
    if isinstance(node, ast.ClassDef):
        inits = [x for x in node.body if isinstance(x, ast.FunctionDef) and x.name == "__init__"]
        if not inits:
            return []
        (node,) = inits
    found = node.args
    names = [x.arg for x in (*found.posonlyargs, *found.args, *found.kwonlyargs)]
    names += [x.arg for x in (found.vararg, found.kwarg) if x]
    return [name for name in names if name not in ("self", "cls") and name[0] != "_"]


def entries(docstring, *sections):
    """Name and text of each entry of the sections."""
    for section, body in SECTION.findall(docstring + "\n"):
        if section in sections:
            yield from ENTRY.findall(body)


def faults(source):
    """What is wrong with the docstrings of a module, one line each."""
    found = []
    for node, docstring in documented(ast.parse(source)):
        for name, text in entries(docstring, "Args", "Attributes"):
            if NOT_A_NOUN.match(text):
                found.append(f"{node.name}, {name}: begins with {text.split()[0]!r}")
        named = {
            name.strip("* ") for names, _ in entries(docstring, "Args") for name in names.split(",")
        }
        if named:
            missing = [name for name in parameters(node) if name not in named]
            found += [f"{node.name}: no entry for {name}" for name in missing]
    return found


MODULES = sorted(
    path
    for name in FOLLOWING
    for path in ([ROOT / name] if name.endswith(".py") else (ROOT / name).rglob("*.py"))
)


def test_docstrings():
    """One test for all modules, since hundreds take longer to report than to check."""
    assert len(MODULES) > 100, "nothing was looked at"
    found = [
        f"{path.relative_to(ROOT)}: {fault}"
        for path in MODULES
        for fault in faults(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "def f(a, b):\n    '''F.\n\n    Args:\n        a: number.\n    '''",
            ["f: no entry for b"],
        ),
        (
            "def f(a, *b):\n    '''F.\n\n    Args:\n        a, b: of the numbers.\n    '''",
            ["f, a, b: begins with 'of'"],
        ),
        (
            "class C:\n    '''C.\n\n    Attributes:\n        a: whose it is.\n    '''\n    a: int",
            ["C, a: begins with 'whose'"],
        ),
        (
            "class C:\n    '''C.\n\n    Args:\n        a: number.\n    '''\n"
            "    def __init__(self, a, *, b=1): pass\n"
            "    def g(self, c):\n        '''G.\n\n        Args:\n            d: one.\n        '''",
            ["g: no entry for c", "C: no entry for b"],
        ),
        ("def f(a):\n    '''F.\n\n    Raises:\n        E: of no use.\n    '''", []),
        ("def _f(a, b):\n    '''F.\n\n    Args:\n        a: of b.\n    '''", []),
    ],
)
def test_faults(source, expected):
    assert faults(source) == expected
