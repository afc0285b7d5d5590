"""Imports go downwards only, and sharding stays where it belongs."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each part may import besides itself.
BELOW = {
    "errors": set(),
    "text_table": set(),
    "json_objects": set(),
    "console": set(),
    "config_fields": {"errors"},
    "feature_names": {"errors"},
    "config_rules": {"errors", "feature_names", "config"},
    "config_tables": {"errors", "config_fields", "feature_names"},
    "config": {"errors", "config_fields", "config_rules", "config_tables"},
    "saved_config": {"errors", "json_objects", "config", "config_fields"},
    "presets": {"errors", "config"},
    "backend": {"errors"},
    "precision": set(),
    "device_memory": {"errors", "backend"},
    "mesh": {"errors", "backend"},
    "gpu_targets": set(),
    "targets": {"errors", "mesh", "gpu_targets"},
    "programs": set(),
    "processes": {"errors", "backend"},
    "coordinator": {"errors", "backend", "processes"},
    "host_exchange": {"processes", "coordinator"},
    "agreements": {"processes"},
    "signals": set(),
    "processor": set(),
    "attention": {"errors", "backend", "native"},
    "models": {"errors", "attention"},
    "workspaces": {"errors"},
    "copied_files": set(),
    "files": {"errors", "workspaces"},
    "locks": {"errors"},
    "data": {"errors", "json_objects", "files", "locks", "workspaces", "feature_names"},
    "native": {"errors", "files", "locks", "backend", "console", "signals"},
    "dynamic_ids": {"errors", "console", "host_exchange", "native", "processes", "embedding"},
    "embedding": {
        "errors",
        "dynamic_ids",
        "backend",
        "device_memory",
        "json_objects",
        "mesh",
        "native",
        "processes",
        "text_table",
    },
    "host_tables": {"errors", "embedding", "dynamic_ids", "data"},
    "artifact": {
        "errors",
        "files",
        "workspaces",
        "backend",
        "data",
        "native",
        "embedding",
        "dynamic_ids",
    },
    "training": {
        "errors",
        "files",
        "locks",
        "workspaces",
        "config",
        "config_fields",
        "feature_names",
        "saved_config",
        "backend",
        "precision",
        "device_memory",
        "mesh",
        "processes",
        "agreements",
        "host_exchange",
        "signals",
        "console",
        "json_objects",
        "attention",
        "models",
        "data",
        "native",
        "embedding",
        "artifact",
        "dynamic_ids",
        "programs",
        "host_tables",
    },
}
BELOW["inference"] = {*BELOW["training"], "training", "copied_files"}
BELOW["serving"] = {*BELOW["inference"], "inference"}
BELOW["conversion"] = {*BELOW["serving"], "serving", "run_start", "run_continued"}
BELOW["run_continued"] = BELOW["run_data"] = {*BELOW["inference"], "inference"}
BELOW["run_start"] = BELOW["run_training"] = {*BELOW["run_continued"], "run_continued"}
BELOW["stream"] = {*BELOW["run_start"], "run_start"}
BELOW["publishing"] = {*BELOW["serving"], "serving"}
BELOW["run"] = {*BELOW["run_start"], "run_start", "run_training", "run_data"}
BELOW["job"] = {*BELOW["run"], "run", "run_data", "presets"}
BELOW["retrieval"] = {*BELOW["run_start"], "run_start", "serving"}
BELOW["sequential"] = {*BELOW["retrieval"], "retrieval"}
BELOW["requests"] = {*BELOW["sequential"], "sequential"}
BELOW["sequential_serving"] = {*BELOW["sequential"], "sequential"}
BELOW["request_serving"] = {*BELOW["requests"], "requests"}
BELOW["search"] = BELOW["daily"] = {*BELOW["job"], "job"}
BELOW["simulation"] = {*BELOW["training"], "training"}
BELOW["cli"] = {*BELOW["search"], "search", "daily", "retrieval", "presets", "text_table"}
BELOW["cli"] |= {"serving", "publishing", "conversion", "processor", "simulation", "stream"}
BELOW["cli"] |= {"targets", "coordinator"}
BELOW["cli"] |= {*BELOW["request_serving"], "request_serving", "sequential_serving"}
BELOW["__main__"] = {"cli"}
BELOW["experiments"] = {*BELOW["cli"], "cli", "sequential", "requests"}
SHARDING_WORDS = ("shard_map", "PartitionSpec")
KNOWS_SHARDING = {
    "embedding", "mesh", "processes", "training", "inference", "retrieval", "sequential",
    "requests",
}  # fmt: skip


def part_of(module):
    """The part that a dotted name lies in; None outside of the project."""
    top, *rest = module.split(".")
    if top == "experiments":
        return "experiments"
    return rest[0] if top == "dlrm_jax" and rest else None


def imported(module, source, is_package=False):
    """The dotted names that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def violations(module, source, is_package=False):
    """What a module does that its part may not do."""
    own = part_of(module)
    if own is None:  # the package itself, which holds what is imported when it is used
        own, allowed = "", {"job"}
    elif own not in BELOW:
        return [f"{module} lies in no known part"]
    else:
        allowed = BELOW[own] | {own}
    found = []
    for name in imported(module, source, is_package):
        part = part_of(name)
        if part is not None and part not in allowed:
            found.append(f"{module} imports {name}")
    if module.startswith("dlrm_jax") and own not in KNOWS_SHARDING:
        found += [f"{module} mentions {word}" for word in SHARDING_WORDS if word in source]
    return found


FILES = sorted(p for top in ("dlrm_jax", "experiments") for p in (ROOT / top).rglob("*.py"))


def test_imports_go_downwards_only():
    found = []
    for path in FILES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        found += violations(module, path.read_text(encoding="utf-8"), is_package)
    assert found == []


def test_tables_know_only_the_policy_of_dynamic_ids():
    """Whose maps are above the tables."""
    found = {
        name
        for path in (ROOT / "dlrm_jax/embedding").rglob("*.py")
        for name in imported("dlrm_jax.embedding.x", path.read_text(encoding="utf-8"))
        if part_of(name) == "dynamic_ids"
    }
    assert found == {"dlrm_jax.dynamic_ids.policy.DynamicIds"}
    policy = (ROOT / "dlrm_jax/dynamic_ids/policy.py").read_text(encoding="utf-8")
    below = {part_of(name) for name in imported("dlrm_jax.dynamic_ids.policy", policy)}
    assert below - {None} == {"errors"}


def test_every_part_is_there():
    # Guards against a search that finds nothing.
    found = {
        path.relative_to(ROOT).with_suffix("").parts[1]
        for path in FILES
        if "dlrm_jax" in str(path.relative_to(ROOT))
    }
    assert BELOW.keys() - {"experiments"} <= found


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("dlrm_jax.models.x", "from dlrm_jax.embedding import Table", "imports dlrm_jax.embedding"),
        ("dlrm_jax.models.x", "import dlrm_jax.config", "imports dlrm_jax.config"),
        ("dlrm_jax.data.x", "from dlrm_jax import mesh", "imports dlrm_jax.mesh"),
        ("dlrm_jax.data.x", "from ..models import mlp", "imports dlrm_jax.models.mlp"),
        (
            "dlrm_jax.embedding.x",
            "def f():\n    from dlrm_jax.config import Config",
            "dlrm_jax.config",
        ),
        ("dlrm_jax.config", "import dlrm_jax.mesh as m", "imports dlrm_jax.mesh"),
        ("dlrm_jax.mesh", "from .training import step", "imports dlrm_jax.training.step"),
        ("dlrm_jax.training.x", "from experiments import main", "imports experiments.main"),
        ("dlrm_jax.models.x", "import jax\njax.shard_map(f)", "mentions shard_map"),
        (
            "dlrm_jax.data.x",
            "from jax.sharding import PartitionSpec as P",
            "mentions PartitionSpec",
        ),
        ("dlrm_jax.helpers", "", "lies in no known part"),
    ],
)
def test_a_violation_is_caught(module, source, found):
    (only,) = violations(module, source)
    assert found in only


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("experiments.main", "from dlrm_jax.training import step\nfrom dlrm_jax import config"),
        ("dlrm_jax.training.x", "from dlrm_jax.data.batches import Batch\nimport jax"),
        ("dlrm_jax.training.x", "from . import step\nPartitionSpec()"),
        ("dlrm_jax.embedding.x", "from dlrm_jax.mesh import MODEL\nimport jax\njax.shard_map"),
        ("dlrm_jax.data.x", "from .arrays import Examples\nfrom ..errors import UserError"),
    ],
)
def test_what_is_allowed_passes(module, source):
    assert violations(module, source) == []
