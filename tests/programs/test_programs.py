"""Programs, read: those of accelerators as XLA prints them, and those that it compiles here."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from dlrm_jax.programs.collectives import (
    as_all_reduces,
    bytes_by_kind,
    collectives,
    with_joined_sums,
)
from dlrm_jax.programs.cycles import Costly, Cycles, cycles
from dlrm_jax.programs.hlo import Program, program_of, read
from dlrm_jax.programs.kernels import kernels
from dlrm_jax.programs.large_arrays import arguments, temporaries
from dlrm_jax.programs.overlap import Overlap, overlaps
from dlrm_jax.programs.products import asked_types, products
from dlrm_jax.programs.report import report
from dlrm_jax.programs.scatters import scatters

# Lines as XLA's compilers for GPUs and TPUs print them.
HLO = """\
HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }, entry={x}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%last (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %copied = f32[]{:T(128)} bitcast(%b)
}

%update (table: f32[900,16], rows: s32[8,1], values: f32[8,16]) -> f32[900,16] {
  %table = f32[900,16]{1,0} parameter(0)
  %rows = s32[8,1]{1,0} parameter(1)
  %values = f32[8,16]{1,0} parameter(2)
  ROOT %added = f32[900,16]{1,0} scatter(%table, %rows, %values), update_window_dims={1}, \
unique_indices=true, to_apply=%add, metadata={op_name="jit(step)/update/scatter-add"}
}

%product (x: f32[8,16], y: f32[16,4]) -> (f32[8,4], bf16[8,4]) {
  %x = f32[8,16]{1,0} parameter(0)
  %y = f32[16,4]{1,0} parameter(1)
  %exact = f32[8,4]{1,0} dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}, \
operand_precision={highest,highest}, metadata={op_name="jit(step)/exact/dot_general"}
  %short = bf16[8,16]{1,0} convert(%x)
  %other = bf16[16,4]{1,0} convert(%y)
  %fast = bf16[8,4]{1,0} dot(%short, %other), lhs_contracting_dims={1}, rhs_contracting_dims={0}, \
metadata={op_name="jit(step)/shard_map/fast/dot_general"}
  ROOT %both = (f32[8,4]{1,0}, bf16[8,4]{1,0}) tuple(%exact, %fast)
}

%body (state: (s32[], f32[900,16])) -> (s32[], f32[900,16]) {
  %state = (s32[], f32[900,16]{1,0}) parameter(0)
  %at = s32[] get-tuple-element(%state), index=0
  %slow = f32[900,16]{1,0} get-tuple-element(%state), index=1
  %again = f32[900,16]{1,0} copy(%slow), metadata={op_name="jit(step)/seldom/copy"}
  ROOT %next = (s32[], f32[900,16]{1,0}) tuple(%at, %again)
}

%goes_on (state: (s32[], f32[900,16])) -> pred[] {
  %state = (s32[], f32[900,16]{1,0}) parameter(0)
  %at = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%at, %at), direction=LT
}

ENTRY %main (p0: f32[900,16], p1: s32[8,1], p2: f32[8,16], p3: f32[16,4]) -> (f32[900,16], f32[8]) {
  %p0 = f32[900,16]{1,0} parameter(0), metadata={op_name="state.embedding.tables[\\'C1\\']"}
  %p1 = s32[8,1]{1,0} parameter(1), metadata={op_name="batch.ids"}
  %p2 = f32[8,16]{1,0:T(8,128)} parameter(2), metadata={op_name="state.params"}
  %p3 = f32[16,4]{1,0} parameter(3)
  %products = (f32[8,4]{1,0}, /*index=1*/bf16[8,4]{1,0:T(8,128)(2,1)S(1)}) fusion(%p2, %p3), \
kind=kOutput, calls=%product
  %begun = ((f32[8,16]{1,0}), f32[8,16]{1,0}) all-to-all-start(%p2), replica_groups={{0,1}}
  %values = f32[8,16]{1,0} all-to-all-done(%begun)
  %part = f32[2,16]{1,0} reduce-scatter(%values), dimensions={0}, to_apply=%add
  %updated = f32[900,16]{1,0} fusion(%p0, %p1, %values), kind=kInput, calls=%update
  %zero = s32[] constant(0)
  %first = (s32[], f32[900,16]{1,0}) tuple(%zero, %updated)
  %loop = (s32[], f32[900,16]{1,0}) while(%first), condition=%goes_on, body=%body
  %done = f32[900,16]{1,0} get-tuple-element(%loop), index=1
  %set = f32[8]{0:T(128)} scatter(%p2, %p1, %p2), to_apply=%last
  ROOT %all = (f32[900,16]{1,0}, f32[8]{0:T(128)}) tuple(%done, %set)
}
"""
# Two collectives that are under way at the same time, and one that a thread of its own computes.
OVERLAPPING = """\
HloModule jit_step, is_scheduled=true, entry={x}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%gathered (given: f32[8,16]) -> f32[16,16] {
  %given = f32[8,16]{1,0} parameter(0)
  ROOT %both = f32[16,16]{1,0} all-gather(%given), dimensions={0}
}

ENTRY %main (p0: f32[8,16], p1: f32[8,16]) -> f32[8,16] {
  %p0 = f32[8,16]{1,0} parameter(0)
  %p1 = f32[8,16]{1,0} parameter(1)
  %sums = f32[8,16]{1,0} all-reduce-start(%p0), to_apply=%add
  %sent = ((f32[8,16]{1,0}), f32[8,16]{1,0}) all-to-all-start(%p1), \
metadata={op_name="jit(step)/update/all_to_all"}
  %sorted = f32[8,16]{1,0} sort(%p1), dimensions={0}, to_apply=%add
  %there = f32[8,16]{1,0} all-to-all-done(%sent)
  %named = f32[128]{0} bitcast(%there)
  %copying = (f32[8,16]{1,0}, f32[8,16]{1,0}, u32[]) copy-start(%there)
  %copied = f32[8,16]{1,0} copy-done(%copying)
  %summed = f32[8,16]{1,0} all-reduce-done(%sums), metadata={op_name="jit(step)/psum"}
  %gathering = ((f32[8,16]{1,0}), f32[16,16]{1,0}) async-start(%summed), calls=%gathered
  %goes_on = ((f32[8,16]{1,0}), f32[16,16]{1,0}) async-update(%gathering), calls=%gathered
  %added = f32[8,16]{1,0} add(%copied, %summed)
  %all = f32[16,16]{1,0} async-done(%goes_on), calls=%gathered
  ROOT %part = f32[8,16]{1,0} reduce-scatter(%all), dimensions={0}, to_apply=%add, \
metadata={op_name="jit(step)/seldom/psum"}
}
"""
STABLEHLO = """
    %0 = stablehlo.dot_general %a, %b, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT]\
 : (tensor<8x16xf32>, tensor<16x4xf32>) -> tensor<8x4xf32> loc(#loc7)
#loc7 = loc("fast/dot_general"(#loc2))
"""


@pytest.fixture(name="program")
def _program() -> Program:
    return read(HLO)


def compiled_of(function: Any, *given: Any) -> jax.stages.Compiled:
    return jax.jit(function).lower(*given).compile()


def test_computations_that_run_one_by_one(program: Program):
    assert {x.name for x in program.scheduled()} == {"main", "body", "goes_on"}
    assert program.computations["product"].root.operands == ("exact", "fast")


def test_arrays_of_instructions(program: Program):
    entry = program.computations[program.entry].instructions
    exact, short = entry["products"].arrays
    assert (str(exact), exact.nbytes, exact.space) == ("f32[8,4]", 128, 0)
    assert (str(short), short.nbytes, short.space) == ("bf16[8,4]", 64, 1)
    assert short.padded_nbytes == 8 * 128 * 2
    assert entry["set"].arrays[0].padded_nbytes == 4 * 128


def test_kernels_of_a_step_and_of_a_turn(program: Program):
    found = kernels(program)
    assert found.once == {"collective": 2, "product": 1, "scatter": 2}
    assert (found.in_loops, found.loops) == ({"copy": 1}, 1)


def test_loops_whose_turns_are_known_count_as_often():
    line = "condition=%goes_on, body=%body"
    known = HLO.replace(line, line + ', backend_config={"known_trip_count":{"n":"7"}}')
    found = kernels(read(known))
    assert found.once["copy"] == 7
    assert (found.in_loops, found.loops) == ({}, 0)


def test_scatters_whose_places_may_repeat(program: Program):
    found = {x.combines: (x.unique, x.may_repeat, n) for x, n in scatters(program, "no").items()}
    assert found == {"add": (True, False, 1), "set": (False, True, 1)}


@pytest.mark.parametrize(
    ("platform", "exact", "fast"), [("gpu", "tf32", "bfloat16"), ("tpu", "bfloat16", "bfloat16")]
)
def test_precision_of_products(program: Program, platform: str, exact: str, fast: str):
    found = products(program, platform, asked_types(STABLEHLO))
    assert {(x.asked, x.computed, x.loses) for x in found} == {
        ("float32", "float32", False), ("float32", fast, True)
    }  # fmt: skip
    lower = read(HLO.replace("operand_precision={highest,highest}, ", ""))
    assert exact in {x.computed for x in products(lower, platform, {})}


def test_products_of_libraries_and_algorithms():
    call = (
        '%exact = f32[8,4]{1,0} custom-call(%x, %y), custom_call_target="__cublas$gemm", '
        'backend_config={"precision_config":{"operand_precision":["HIGHEST","HIGHEST"],'
        '"algorithm":"ALG_UNSET"}}'
    )
    lines = [call if " %exact = " in line else line for line in HLO.splitlines()]
    assert ("float32", "float32") in products(
        read("\n".join(lines).replace("\n%e", "\n  %e")), "gpu", {}
    )
    three = HLO.replace("operand_precision={highest,highest}", "algorithm=dot_tf32_tf32_f32_x3")
    (found,) = (x for x in products(read(three), "gpu", {}) if x.asked == "float32")
    assert (found.computed, found.loses) == ("tf32_3x", False)


def test_tables_that_are_copied_and_what_is_updated(program: Program):
    given = {x.name: x.updated for x in arguments(program)}
    assert given["state.embedding.tables['C1']"]
    assert not given["state.params"]
    large = temporaries(program)[0]  # the scatters update in place, or are outputs
    assert (large.kind, large.nbytes) == ("copy", 900 * 16 * 4)
    assert large.op_name == "jit(step)/seldom/copy"


def test_collectives_and_what_tpus_make_of_them(program: Program):
    found = collectives(program, "seldom")
    assert found == [("all-to-all", 512), ("reduce-scatter", 128)]
    planned = Counter({"reduce-scatter": 128, "all-gather": 40, "all-reduce": 8})
    compiled = Counter({"all-reduce": 8 + 4 * 128 + 30, "all-gather": 10})
    assert as_all_reduces(planned, compiled, 4) == compiled
    assert as_all_reduces(planned, planned, 4) == planned
    norms = Counter({"all-reduce": 60, "all-gather": 8})
    joined = Counter({"all-reduce": 32, "all-gather": 8})
    assert with_joined_sums(norms, joined, 32) == joined
    assert with_joined_sums(norms, joined, 28) == norms  # one of them is sent
    assert with_joined_sums(joined, norms, 32) == joined
    assert bytes_by_kind(found) == {"all-to-all": 512, "reduce-scatter": 128}


def test_a_collective_that_goes_on_in_several_fusions_counts_once():
    inner = "all-gather(%given), dimensions={0}"
    begin = "  %gathering = "
    fusions = [
        f"  %{name} = f32[16,16] fusion(%p0), kind=kCustom, calls=%{name}\n"
        for name in ("gathered", "more")
    ]
    once = OVERLAPPING.replace(inner, f"{inner}, channel_id=7")
    once = once.replace(begin, "".join(fusions) + begin)
    start = once.index("%gathered (")
    body = once[start : once.index("}\n", start) + 2]
    more = body.replace("%gathered (", "%more (")
    twice = collectives(read(once.replace(body, body + more)), "seldom")
    others = collectives(read(once.replace(body, body + more.replace("=7", "=8"))), "seldom")
    assert [kind for kind, _ in twice].count("all-gather") == 1
    assert [kind for kind, _ in others].count("all-gather") == 2


def test_what_is_computed_while_collectives_are_under_way(program: Program):
    assert overlaps(program, "seldom") == [
        Overlap("all-to-all", 512, "", True, 0),
        Overlap("reduce-scatter", 128, "", False, 0),
    ]
    found = overlaps(read(OVERLAPPING), "seldom")
    assert found == [
        Overlap("all-to-all", 512, "jit(step)/update/all_to_all", True, 1),
        Overlap("all-reduce", 512, "jit(step)/psum", True, 2),
        Overlap("all-gather", 1024, "", True, 1),
    ]


def test_cycles_that_a_compiler_counts(program: Program):
    assert cycles(program, "seldom", 2) is None
    counts = {"calls=%product": 700, "calls=%update": 20, "direction=LT": 3, 'seldom/copy"}': 900}
    counted = HLO
    for end, count in counts.items():
        config = f', backend_config={{"window_config":{{"estimated_cycles":"{count}"}}}}'
        counted = counted.replace(end, end + config)
    once, in_loops, most = cycles(read(counted), "seldom", 2) or (0, 0, ())
    assert (once, in_loops) == (720, 3)
    assert most == (Costly(700, "f32[8,4], bf16[8,4]", ""), Costly(20, "f32[900,16]", ""))
    assert cycles(read(counted), "rarely", 1) == Cycles(
        720, 903, (Costly(900, "f32[900,16]", "jit(step)/seldom/copy"),)
    )


def test_a_program_that_is_compiled_here():
    def step(table: jax.Array, rows: jax.Array) -> jax.Array:
        table = jax.lax.fori_loop(0, rows[0], lambda _, x: jnp.sort(x * 2, axis=0), table)
        return table.at[rows].add(jnp.ones((3, 4)) @ jnp.full((4, 8), table.sum()))

    given = jnp.ones((500, 8)), jnp.array([1, 2, 3])
    lowered = jax.jit(step, donate_argnums=0).lower(*given)
    found = report(lowered, lowered.compile(), "cpu", [], "seldom")
    assert found["kernels"]["loops"] >= 1
    assert found["operations"]["sort"] == 1
    (product,) = found["products"]
    assert (product["asked"], product["computed"], product["number"]) == ("float32", "float32", 1)
    assert found["memory"]["updated_in_place"] == 500 * 8 * 4


def test_arrays_as_large_as_a_table_are_named():
    class Embedding(NamedTuple):
        tables: dict[str, jax.Array]

    class State(NamedTuple):
        embedding: Embedding

    def step(state: State) -> jax.Array:
        return jnp.sort(state.embedding.tables["C1"], axis=0)[:2]

    lowered = jax.jit(step).lower(State(Embedding({"C1": jnp.ones((500, 128))})))
    compiled = lowered.compile()
    found = report(lowered, compiled, "tpu", ["C1"], "seldom")
    assert found["as_large_as_a_table"]
    assert not report(lowered, compiled, "tpu", [], "seldom")["as_large_as_a_table"]


def test_texts_that_are_no_programs():
    with pytest.raises(ValueError, match="expected the text of a program"):
        read("module @jit_step {}")
    assert program_of(compiled_of(jnp.sin, 1.0)).entry
