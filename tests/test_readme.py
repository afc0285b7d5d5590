"""What README and LIBRARY show runs as it stands there, and prints what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dlrm_jax.embedding import (
    SGD,
    EmbeddingCollection,
    Feature,
    Lookup,
    RowWiseAdagrad,
    Table,
    automatic_plan,
)
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh

ROOT = Path(__file__).parents[1]
LIBRARY = (ROOT / "LIBRARY.md").read_text()


def blocks(text: str) -> list[tuple[str, str]]:
    """The language and the content of each fenced block that names its language."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def printed_by(code: str, tmp_path: Path) -> list[str]:
    script = tmp_path / "example.py"  # a file, so that a traceback shows its lines
    script.write_text(code)
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    result = subprocess.run(
        [sys.executable, "-W", "error", script],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return [line.rstrip() for line in result.stdout.splitlines()]


def python_blocks(name: str) -> list[str]:
    return [code for kind, code in blocks((ROOT / name).read_text()) if kind == "python"]


def test_readme(tmp_path: Path):
    losses = [
        float(line.split()[1]) for line in printed_by(python_blocks("README.md")[0], tmp_path)
    ]
    assert len(losses) == 20
    assert losses[-1] < losses[0]


def test_a_model_is_one_class(tmp_path: Path):
    (tmp_path / "mine.py").write_text(python_blocks("README.md")[1])
    flags = ["--model=mine:Products", "--model_options=scale=0.5", "--examples=5000",
             f"--workdir={tmp_path / 'run'}"]  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    result = subprocess.run(
        [sys.executable, "-m", "experiments.criteo", *flags],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert "C1.weight" in result.stdout


def test_library(tmp_path: Path):
    code, promised = "", []
    for language, block in blocks(LIBRARY):
        if language == "python":
            code += block
            promised += re.findall(r"^(?:print\(.*\)  )?# (.*)$", block, re.MULTILINE)
        elif language == "text":
            promised += block.splitlines()
    assert len(promised) > 10
    assert printed_by(code, tmp_path) == promised


USERS, ITEMS = Table("users", 3000, 16), Table("items", 500, 16)
FEATURES = [Feature("user"), Feature("history", 5), Feature("item")]
LOOKUPS = [Lookup("user", "user", "users"), Lookup("item", "item", "items")]


def collection(
    tables: tuple[Table, ...] = (USERS, ITEMS),
    lookups: list[Lookup] = LOOKUPS,
    optimizer: SGD | RowWiseAdagrad | None = RowWiseAdagrad(0.1),  # noqa: B008
    shards: int = 2,
    **placements: str,
) -> EmbeddingCollection:
    plan = automatic_plan(tables, shards, placements)
    return EmbeddingCollection(tables, FEATURES, lookups, make_mesh("1x2"), optimizer, plan)


MISTAKES: dict[str, Callable[[], object]] = {
    "name": lambda: collection(lookups=[LOOKUPS[0], Lookup("item", "item", "itms")]),
    "unread": lambda: collection(lookups=LOOKUPS[:1]),
    "optimizer": lambda: collection(optimizer=None),
    "shards": lambda: collection(shards=4),
    "width": lambda: automatic_plan([Table("items", 500, 6)], 4, {"items": "column_wise"}).check(
        [Table("items", 500, 6)]
    ),
    "devices": lambda: make_mesh("4x4"),
    "columns": lambda: collection().check_ids(np.zeros((2, 6), np.int32)),
    "slot": lambda: collection().from_arrays(lambda table: {"bias": jnp.zeros(table.rows)}, 0),
    "rows": lambda: collection().from_arrays(
        lambda table: {"table": np.zeros((2000, 16), "f4")}, 0
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_messages(mistake: str):
    with pytest.raises(UserError) as error:
        MISTAKES[mistake]()
    explained = re.findall(r"^\| `(.*?)`( …)? \|", LIBRARY, re.MULTILINE)
    message = str(error.value)
    assert any(message.startswith(text) if more else message == text for text, more in explained), (
        message
    )
