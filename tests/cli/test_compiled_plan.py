"""Plans whose steps are compiled."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import pytest

from dlrm_jax.cli import compiled_plan
from dlrm_jax.cli.compiled_plan import check_compiled, plan_and_compile
from dlrm_jax.cli.flags import parse
from dlrm_jax.config import Config
from dlrm_jax.embedding.planning.devices import DEVICES
from dlrm_jax.embedding.planning.limits import Limits
from dlrm_jax.embedding.planning.mesh_plan import MeshPlan
from dlrm_jax.embedding.planning.mesh_search import MeshSearch
from dlrm_jax.embedding.planning.planner import MemoryExceededError
from dlrm_jax.errors import UserError
from dlrm_jax.training.build import workload
from dlrm_jax.training.tables import describe

CONFIG = Config(
    table_rows=(4000, 4000), embedding_dim=8, bottom_mlp=(8,), top_mlp=(4, 1), batch_size=64
)
CPU = DEVICES["cpu"]


def test_a_plan_leaves_memory_for_the_compiled_step(capsys: pytest.CaptureFixture[str]):
    described, asked = describe(CONFIG), []

    def plans_within(limits: Limits) -> Sequence[MeshPlan]:
        asked.append(limits.memory)
        placement = "replicated" if limits.memory > 300_000 else "row_wise"
        placements = dict.fromkeys([table.name for table in described.tables], placement)
        tables = described.tables, described.features, described.lookups
        search = MeshSearch(tables, placements, described.optimizer, CPU, Limits())
        return [search.within_memory(4, workload(CONFIG, described, 2))]

    # Replicated, the tables and their state take 288 kB on each device; the step needs more.
    found = plan_and_compile(CONFIG, CPU, Limits(memory=400_000), 295_000, plans_within)
    assert asked[0] == 400_000
    assert 0 < asked[1] < 288_000
    assert len(asked) == 2
    assert found.plans[0].plan.placement("C1") == "row_wise"
    assert found.tables == found.plans[0].balance.device_bytes == 288_000 / 4
    assert found.tables < found.arguments < found.needed <= 295_000
    assert "the step of the plan for 2x4 needs 0.000" in capsys.readouterr().out
    with pytest.raises(MemoryExceededError, match=r"--compiled: expected a step that fits into"):
        plan_and_compile(CONFIG, CPU, Limits(memory=400_000), 50_000, plans_within)


def test_there_is_a_compiler(monkeypatch: pytest.MonkeyPatch):
    check_compiled(CPU)
    with pytest.raises(UserError, match=r"--compiled: expected one of a100, .* got mi300x"):
        check_compiled(DEVICES["mi300x"])
    monkeypatch.setattr(compiled_plan, "lacks", lambda device: f"no compiler of {device}")
    with pytest.raises(UserError, match="--compiled: no compiler of h100"):
        check_compiled(DEVICES["h100"])


@pytest.mark.parametrize("program", ["dlrm_jax.cli.plan"], indirect=True)
def test_the_command_compares_formulas_with_the_program(
    program: ModuleType, capsys: pytest.CaptureFixture[str]
):
    given = [
        "--preset=small", "--table_rows=300,400", "--bottom_mlp=8,16", "--top_mlp=4,1",
        "--mesh=2x4", "--batch_size=64", "--device=cpu", "--compiled", "--simulate",
    ]  # fmt: skip
    parse(["plan", *given])
    program.main()
    text = capsys.readouterr().out
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    planned, compiled = lines["tables and their state"][-2:]
    assert planned == compiled
    # Name, kernels, milliseconds, collectives: each by formulas, then of the program.
    kernels = [int(cell.replace(",", "")) for cell in lines["update of tables"][-6:-4]]
    assert 0 < kernels[0] < kernels[1]
    assert float(lines["a step"][-3]) > 0
    assert "simulated for cpu" in text
