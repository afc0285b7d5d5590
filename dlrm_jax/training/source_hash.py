"""The source of a user's own models, losses and metrics, on which the numbers of trials depend."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from dlrm_jax.errors import UserError
from dlrm_jax.training.extra_metrics import extra_metrics
from dlrm_jax.training.losses import own_function
from dlrm_jax.training.named_functions import imported

_OURS = ("dlrm_jax", "experiments")
_INSTALLED = {"site-packages", "dist-packages"}
# Of a file that can't be read as Python, or is too deep for that.
_NOT_PARSED = (SyntaxError, ValueError, RecursionError, MemoryError)

Root = Path | zipfile.Path
"""A directory of modules, or a zip file of them."""


def source_hashes(
    models: Iterable[str], losses: Iterable[str], metrics: Iterable[str] = ()
) -> dict[str, str]:
    """The `source_hash` of each that is the user's own, by its name.

    Args:
        models: values of this field of a config.
        losses: values of this field.
        metrics: names in this field.

    Raises:
        UserError: one can't be imported, or has no source.
    """
    named = [("model", text) for text in models if ":" in text]
    named += [("loss", text) for text in losses if own_function(text)]
    functions = [metric.function for metric in extra_metrics(tuple(metrics))]
    named += [("metrics", text) for text in functions if text]
    return {text: source_hash(field, text) for field, text in named}


@functools.cache
def source_hash(field: str, text: str) -> str:
    """Hash of the Python files that a model class, loss or metric of the user's is made of.

    These are its module, and what that imports, directly or not, from its package and from the
    directories of PYTHONPATH. Modules whose names aren't in an ``import`` statement aren't covered,
    nor are installed packages, this program and files of data.

    The first call in a process decides: what runs is what was imported then.

    Args:
        field: field of the config, for messages.
        text: MODULE:NAME.

    Raises:
        UserError: it can't be imported, or has no source.
    """
    imported(field, text)
    module = text.partition(":")[0]
    top = _top(module)
    roots = [Path(each) for each in sys.path]
    own: list[Root] = [root for root in roots if root.is_dir() and not _is_installed(root)]
    own += [zipfile.Path(root) for root in roots if zipfile.is_zipfile(root)]
    found: dict[str, str] = {}
    missing = [module]
    while missing:
        name = missing.pop()
        first = name.partition(".")[0]
        if name in found or (first in _OURS and name != module):
            continue
        beside = [top] if top and first == module.partition(".")[0] else []
        if path := next(filter(None, (_file_of(root, name) for root in [*beside, *own])), None):
            content = path.read_bytes()
            found[name] = hashlib.sha256(content).hexdigest()
            is_package = path.name == "__init__.py"
            missing += _imports(content, name if is_package else name.rpartition(".")[0])
    if module not in found:
        file = getattr(sys.modules[module], "__file__", None)
        raise UserError(
            f"{field}: expected {module} to have a Python file, by which its trials are told from "
            f"those before a change; got {file}"
        )
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()


def _top(module: str) -> Path | None:
    """The directory of a module's top-level package, or its own; None without such a file."""
    file = getattr(sys.modules[module], "__file__", None)
    if file is None or Path(file).suffix != ".py":
        return None
    return Path(file).parents[module.count(".") + (Path(file).stem == "__init__")]


def _is_installed(directory: Path) -> bool:
    directory = directory.resolve()
    standard = (Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
    return bool(_INSTALLED & {*directory.parts}) or any(map(directory.is_relative_to, standard))


def _file_of(root: Root, name: str) -> Root | None:
    """The file of a module, if it is in a root."""
    *packages, last = name.split(".")
    package = functools.reduce(lambda path, part: path / part, packages, root)
    files = (package / last / "__init__.py", package / f"{last}.py")
    return next((file for file in files if file.is_file()), None)


def _imports(content: bytes, package: str) -> Iterator[str]:
    """Names that a module imports, modules or not, and the packages that they are in."""
    try:
        tree = ast.parse(content)
    except _NOT_PARSED:  # it is imported in vain, and in a try
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            try:
                base = importlib.util.resolve_name(relative, package) if node.level else relative
            except ImportError:  # there is no package so far up
                continue
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))
