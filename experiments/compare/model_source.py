"""The source of a model class of the user's, on which the numbers of its trials depend."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from dlrm_jax.errors import UserError

_OURS = ("dlrm_jax", "experiments")


def source_hash(model: str) -> str | None:
    """Hash of the Python files that a model class of the user's is made of; None for a name.

    These are its module, and what that imports, directly or not, from the directory of its
    top-level package or module; of an installed package, from the package. Modules whose names
    aren't in an ``import`` statement aren't covered, nor are other packages and files of data.

    Args:
        model: name in `dlrm_jax.models.zoo`, or ``MODULE:CLASS``.

    Raises:
        UserError: the module has no source.
    """
    module, separator, _ = model.partition(":")
    if not separator:
        return None
    file = getattr(importlib.import_module(module), "__file__", None)
    if file is None or Path(file).suffix != ".py":
        raise UserError(
            f"model: expected {module} to have a Python file, by which its trials are told from "
            f"those before a change; got {file}"
        )
    parts = module.split(".")
    is_package = Path(file).stem == "__init__"
    top = Path(file).parents[len(parts) - 1 + is_package]
    found: dict[str, str] = {}
    missing = [module]
    while missing:
        name = missing.pop()
        path = _file_of(top, name)
        if name not in found and path and _is_beside(name, parts[0], top):
            content = path.read_bytes()
            found[name] = hashlib.sha256(content).hexdigest()
            package = name if path.stem == "__init__" else name.rpartition(".")[0]
            missing += _imports(ast.parse(content), package)
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()


def _is_beside(name: str, top_level: str, directory: Path) -> bool:
    first = name.partition(".")[0]
    installed = directory in (Path(sysconfig.get_path(x)) for x in ("purelib", "platlib"))
    return first == top_level if installed else first not in _OURS


def _file_of(top: Path, name: str) -> Path | None:
    """The file of a module, if it is below a directory."""
    path = top.joinpath(*name.split("."))
    files = (path / "__init__.py", path.with_name(f"{path.name}.py"))
    return next((file for file in files if file.is_file()), None)


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Names that a module imports, modules or not, and the packages that they are in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package) if node.level else relative
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))
