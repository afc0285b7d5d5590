"""The comparison of the processes' kernels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from dlrm_jax.embedding import SGD, EmbeddingCollection, Feature, Lookup, Table, kernel_dispatch
from dlrm_jax.native import library


def mesh_of(*processes: int) -> Any:
    devices = np.array([SimpleNamespace(process_index=i) for i in processes])
    return Mock(spec=Mesh, devices=devices)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(kernel_dispatch, "check_same", lambda values, advice: found.append(values))
    monkeypatch.setattr(library, "version", lambda: "kernels-1")
    return found


@pytest.mark.parametrize("kind", ["native", "native of C1, C3; jax of C2"])
def test_the_library_is_compared_wherever_a_part_is_native(
    compared: list[dict[str, Any]], kind: str
):
    kernel_dispatch.check_processes(mesh_of(0), {"lookups": "jax", "updates": kind})
    kernel_dispatch.check_processes(mesh_of(0), {"lookups": "jax"})
    assert compared == [
        {
            "kernels of lookups": "jax",
            "kernels of updates": kind,
            "the library of native kernels": "kernels-1",
        },
        {"kernels of lookups": "jax"},
    ]


def test_a_mesh_without_some_of_the_processes_waits_for_none(
    compared: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    kernel_dispatch.check_processes(mesh_of(0, 0, 1, 1), {"lookups": "jax"})
    assert not compared
    kernel_dispatch.check_processes(mesh_of(0, 1, 2), {"lookups": "jax"})
    assert len(compared) == 1


def test_a_state_is_made_after_the_comparison(compared: list[dict[str, Any]]):
    tables = EmbeddingCollection(
        [Table("t", 4, 2)], [Feature("f")], [Lookup("l", "f", "t")], "1x1", SGD(0.1), kernels="jax"
    )
    assert not compared
    tables.init(0)
    kinds = ("lookups", "updates", "initial values")
    assert compared == [{f"kernels of {kind}": "jax" for kind in kinds}]
