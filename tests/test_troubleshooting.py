"""The messages of the page on troubleshooting are those that the library and the commands raise."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from documents import ROOT
from jaxtyping import Array

from dlrm_jax.embedding import (
    SGD,
    EmbeddingCollection,
    EmbeddingState,
    Feature,
    Lookup,
    RowWiseAdagrad,
    Table,
    automatic_plan,
)
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import emulate_devices, make_mesh

TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text()

USERS, ITEMS = Table("users", 3000, 16), Table("items", 500, 16)
FEATURES = [Feature("user"), Feature("history", 5), Feature("item")]
LOOKUPS = [Lookup("user", "user", "users"), Lookup("item", "item", "items")]
IDS = {"user": np.zeros(2, int), "history": np.zeros((2, 5), int), "item": np.zeros(2, int)}


def collection(
    tables: tuple[Table, ...] = (USERS, ITEMS),
    lookups: list[Lookup] = LOOKUPS,
    optimizer: SGD | RowWiseAdagrad | None = RowWiseAdagrad(0.1),  # noqa: B008
    shards: int = 2,
    mesh: str = "1x2",
    **placements: str,
) -> EmbeddingCollection:
    plan = automatic_plan(tables, shards, placements)
    return EmbeddingCollection(tables, FEATURES, lookups, make_mesh(mesh), optimizer, plan)


def norm_without_sums() -> object:
    tables = collection(optimizer=SGD(0.1))

    def norm(state: EmbeddingState, ids: Array) -> Array:
        _, residuals = tables.lookup(state, ids)
        cotangents = {name: jnp.ones((2, 16)) for name in ("user", "item")}
        return tables.coalesce(tables.send_cotangents(residuals, cotangents)).squared_norm()

    return jax.eval_shape(norm, tables.state_specs(), tables.put(IDS))


MISTAKES: dict[str, Callable[[], object]] = {
    "name": lambda: collection(lookups=[LOOKUPS[0], Lookup("item", "item", "itms")]),
    "unread": lambda: collection(lookups=LOOKUPS[:1]),
    "optimizer": lambda: collection(optimizer=None),
    "shards": lambda: collection(shards=4),
    "width": lambda: automatic_plan([Table("items", 500, 6)], 4, {"items": "column_wise"}).check(
        [Table("items", 500, 6)]
    ),
    "devices": lambda: make_mesh("4x4"),
    "late": lambda: emulate_devices(16),
    "columns": lambda: collection().check_ids(np.zeros((2, 6), np.int32)),
    "slot": lambda: collection().from_arrays(lambda table: {"bias": jnp.zeros(table.rows)}, 0),
    "rows": lambda: collection().from_arrays(
        lambda table: {"table": np.zeros((2000, 16), "f4")}, 0
    ),
    "batch": lambda: collection(mesh="4x2").put(np.zeros((12, 7), np.int32)),
    "feature": lambda: collection().put({"user": np.zeros(2, int)}),
    "bag": lambda: collection().put({**IDS, "history": np.zeros((2, 6), int)}),
    "id": lambda: collection().put({**IDS, "item": np.array([500, 0])}),
    "norm": norm_without_sums,
}


def messages(section: str) -> list[tuple[str, str]]:
    """The messages of a table of the page on troubleshooting, with … where only a part stands."""
    (text,) = re.findall(rf"^## {section}$(.*?)(?=^## |\Z)", TROUBLE, re.DOTALL | re.MULTILINE)
    return re.findall(r"^\| `(.*?)`( …)? \|", text, re.MULTILINE)


def explains(text: str, more: str, message: str) -> bool:
    return message.startswith(text) if more else message == text


@pytest.mark.parametrize("mistake", MISTAKES)
def test_messages(mistake: str):
    with pytest.raises(UserError) as error:
        MISTAKES[mistake]()
    message = str(error.value)
    assert any(
        explains(text, more, message) for text, more in messages("Messages of the library")
    ), message


def test_messages_of_commands():
    """Each part of a message stands in the code; that it is raised is tested where it belongs."""
    literals = {
        node.value.strip()
        for path in (ROOT / "dlrm_jax").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    rows = messages("Messages of the commands")
    assert len(rows) > 5
    for text, _ in rows:
        parts = [part.strip() for part in text.split("…") if len(part) > 3]
        assert parts
        for part in parts:
            assert any(part in literal for literal in literals), part
