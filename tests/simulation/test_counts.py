"""The work of compiled steps, counted in their text."""

from __future__ import annotations

import dataclasses

import pytest

from dlrm_jax.config import Config
from dlrm_jax.embedding.planning.devices import DEVICES
from dlrm_jax.embedding.planning.planner import automatic_plan
from dlrm_jax.programs.hlo import read
from dlrm_jax.simulation.counts import STEP_PARTS, Counts, count, part_of
from dlrm_jax.simulation.schedule import critical_path, seconds_of
from dlrm_jax.simulation.step import Options, formula_kernels, simulate
from dlrm_jax.training.build import workload
from dlrm_jax.training.tables import describe

# A lookup of 4 rows of a table of 1000, exchanged beside a kernel; three turns of an update of 4
# rows; a round that seldom runs; and an all-reduce of the dense gradients that nothing runs beside.
TEXT = """HloModule jit_step, is_scheduled=true

%turn (p: (f32[1000,8], f32[4,8])) -> (f32[1000,8], f32[4,8]) {
  %p = (f32[1000,8]{1,0}, f32[4,8]{1,0}) parameter(0)
  %t = f32[1000,8]{1,0} get-tuple-element(%p), index=0
  %g = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %s = f32[1000,8]{1,0} scatter(%t, %g), metadata={op_name="jit(step)/update/scatter"}
  ROOT %r = (f32[1000,8]{1,0}, f32[4,8]{1,0}) tuple(%s, %g)
}

%done (p: (f32[1000,8], f32[4,8])) -> pred[] {
  %p = (f32[1000,8]{1,0}, f32[4,8]{1,0}) parameter(0)
  ROOT %c = pred[] constant(false)
}

ENTRY %main (t: f32[1000,8], w: f32[16]) -> (f32[1000,8], f32[16]) {
  %t = f32[1000,8]{1,0} parameter(0), metadata={op_name="state.embedding.tables['C1']"}
  %w = f32[16]{0} parameter(1), metadata={op_name="state.params['w']"}
  %v = f32[4,8]{1,0} gather(%t), metadata={op_name="jit(step)/lookup/gather"}
  %x = f32[4,8]{1,0} all-to-all-start(%v), metadata={op_name="jit(step)/lookup/all_to_all"}
  %m = f32[16]{0} dot(%w, %w), metadata={op_name="jit(step)/jvp(top_mlp)/dot"}
  %y = f32[4,8]{1,0} all-to-all-done(%x), metadata={op_name="jit(step)/lookup/all_to_all"}
  %b = f32[16]{0} dot(%m, %w), metadata={op_name="jit(step)/transpose(jvp(top_mlp))/dot"}
  %l = f32[16]{0} exp(%b), metadata={op_name="jit(step)/lookup/while/body/later_rounds/exp"}
  %a = f32[16]{0} all-reduce-start(%b)
  %d = f32[16]{0} all-reduce-done(%a)
  %i = (f32[1000,8]{1,0}, f32[4,8]{1,0}) tuple(%t, %y)
  %o = (f32[1000,8]{1,0}, f32[4,8]{1,0}) while(%i), condition=%done, body=%turn, \
metadata={op_name="jit(step)/update/while"}, backend_config={"known_trip_count":{"n":"3"}}
  %u = f32[1000,8]{1,0} get-tuple-element(%o), index=0
  %n = f32[16]{0} add(%w, %d), metadata={op_name="jit(step)/optimizer/add"}
  ROOT %r = (f32[1000,8]{1,0}, f32[16]{0}) tuple(%u, %n)
}
"""


def test_the_work_of_a_program_by_part():
    found = count(read(TEXT))
    assert found.kernels == {"lookup": 1, "forward": 1, "backward": 1, "update": 3, "dense": 1}
    rows, weights = 4 * 8 * 4, 16 * 4
    assert found.nbytes == {
        "lookup": 2 * rows,  # of a table of 32 kB
        "forward": 3 * weights, "backward": 3 * weights, "dense": 3 * weights,
        "update": 3 * 3 * rows,
    }  # fmt: skip
    assert found.received == {"lookup": rows, "dense": weights}
    assert found.collectives == {"lookup": 1, "dense": 1}
    assert {part: found.beside[part] for part in STEP_PARTS} == dict.fromkeys(STEP_PARTS, 0) | {
        "lookup": 1
    }


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("jit(step)/lookup/shard_map/gather", "lookup"),
        ("jit(step)/update/shard_map/scatter", "update"),
        ("jit(step)/optimizer/add", "dense"),
        ("jit(step)/shard_map/psum", "dense"),
        ("", "dense"),
        ("jit(step)/shard_map/transpose(jvp(interaction))/dot", "backward"),
        ("jit(step)/shard_map/jvp(interaction)/dot", "forward"),
    ],
)
def test_parts_by_name(name: str, part: str):
    assert part_of(name) == part


def test_a_simulated_step_takes_the_program_s_work():
    config = Config(table_rows=(50, 3000), embedding_dim=8, bottom_mlp=(8,), batch_size=512)
    described, device = describe(config), DEVICES["h100"]
    plan = automatic_plan(
        described.tables,
        4,
        optimizer=described.optimizer,
        workload=workload(config, described, 2),
        device=device,
    )
    step = config, described, plan, 2, device, Options()
    kernels = formula_kernels(config, described, plan, 2)
    none = dict.fromkeys(STEP_PARTS, 0)

    def seconds(counts: Counts | None) -> float:
        return seconds_of(simulate(*step, counts))

    empty = Counts(none, none, none, none, dict.fromkeys(STEP_PARTS, 1))
    few = dataclasses.replace(empty, kernels=kernels)
    more = dataclasses.replace(few, kernels={**kernels, "lookup": kernels["lookup"] + 100})
    assert seconds(empty) < seconds(few)
    assert seconds(more) - seconds(few) == pytest.approx(100 * device.launch)
    wide = dataclasses.replace(few, nbytes={**none, "backward": 1e9})
    spared = kernels["backward"] * device.launch
    assert seconds(wide) - seconds(few) == pytest.approx(1e9 / device.memory_bandwidth, abs=spared)
    # Nothing runs beside its collectives: every operation waits for the one before.
    alone = simulate(*step, dataclasses.replace(few, beside=none))
    assert len(critical_path(alone)) == len(alone)
    assert seconds_of(alone) == pytest.approx(sum(slot.operation.seconds for slot in alone))
    assert seconds_of(alone) > seconds(few)
