"""What a plan's report says of the reasons why a step isn't faster."""

from __future__ import annotations

import dataclasses

import pytest

from dlrm_jax.cli.plan_report import binding
from dlrm_jax.embedding import SGD, Feature, Lookup, Table, Workload, automatic_plan
from dlrm_jax.embedding.collectives import Collective
from dlrm_jax.embedding.planning.balance import LINKS, NETWORK
from dlrm_jax.embedding.planning.devices import DEVICES
from dlrm_jax.embedding.planning.limits import Limits
from dlrm_jax.embedding.planning.mesh_plan import planned_mesh

IN_GROUP = Collective("all-to-all", ("model",), "rows in the group", 3000, 3000.0)
BETWEEN = Collective("all-to-all", ("data",), "rows between groups", 1500, 1500.0)
OVER_ALL = Collective("all-reduce", ("data", "model"), "limits", 8, 8.0)
SUMS = Collective("all-gather", ("data",), "sums", 20, 20.0)
MOVED = OVER_ALL, SUMS, BETWEEN, IN_GROUP


@pytest.mark.parametrize(
    ("groups", "shards", "part", "purpose"),
    [
        (1, 16, NETWORK, "rows in the group"),  # half of whose devices are on another host
        (2, 16, NETWORK, "rows in the group"),
        (2, 8, NETWORK, "rows between groups"),
        (2, 8, LINKS, "rows in the group"),
        (4, 2, LINKS, "rows in the group"),
        (8, 1, LINKS, "rows between groups"),  # all on one host
    ],
)
def test_bytes_cross_hosts_where_devices_do(groups: int, shards: int, part: str, purpose: str):
    """A host has eight devices."""
    table = Table("t", 1000, 16)
    plan = automatic_plan([table], shards, {"t": "row_wise" if shards > 1 else "replicated"})
    described = [table], [Feature("f")], [Lookup("f", "f", "t")]
    workload = Workload(256, groups)
    found = planned_mesh(*described, plan, SGD(0.1), workload, DEVICES["h100"])
    found = dataclasses.replace(found, collectives=MOVED, seconds={part: 1.0})
    text = binding(found, DEVICES["h100"], Limits())
    assert f"most of the bytes are {purpose} in an all-to-all" in text
