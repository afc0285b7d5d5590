"""A step by class of operator: what a compiled program does, its trace, and the program itself."""

from __future__ import annotations

import collections
import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from as_users import OPTIMIZED
from google.protobuf import proto
from looping_program import LOOP
from main_job import run
from quick_machine import quickly

from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.compiled import (
    abstract_batch,
    compile_step,
    compiled_collectives,
    planned_collectives,
)
from dlrm_jax.training.learner import Learner
from dlrm_jax.training.step import make_train_step
from experiments.benchmarks.roofline import matrix_flops
from experiments.characterize import chakra, sweep
from experiments.characterize.cost import class_costs, table_arrays
from experiments.characterize.groups import read_groups
from experiments.characterize.hlo import Program, scope
from experiments.characterize.measure import measure
from experiments.characterize.profile import DATA, IDLE

CONFIG = Config(
    table_rows=(70, 9000, 400),
    bag_lengths=(1, 3, 2),
    embedding_dim=8,
    bottom_mlp=(24, 8),
    top_mlp=(32, 1),
    dense_features=5,
    optimizer="sgd",
    batch_size=2048,  # works in chunks on one device
    kernels="jax",
    placements=("C1=replicated", "C2=row_wise", "C3=table_wise"),
)


@pytest.fixture(scope="module", autouse=True)
def scopes_of_this_program() -> Iterator[None]:
    """A compiled program from the tests' cache may have been traced with other scopes."""
    jax.config.update("jax_compilation_cache_include_metadata_in_key", True)
    yield
    jax.config.update("jax_compilation_cache_include_metadata_in_key", False)


@pytest.fixture(scope="module", params=[pytest.param("1x1", marks=pytest.mark.thorough), "2x2"])
def compiled(request: pytest.FixtureRequest) -> tuple:
    learner = make_learner(CONFIG, make_mesh(request.param))
    step = compile_step(learner, CONFIG.batch_size, CONFIG.dense_features)
    text = step.as_text()
    assert text is not None
    return learner, step, Program(text)


def read_trace(path: Path) -> tuple[Any, list[Any]]:
    """The metadata and the nodes of a file."""
    file = io.BytesIO(path.read_bytes())
    metadata = proto.parse_length_prefixed(chakra.SCHEMA["GlobalMetadata"], file)
    return metadata, [*iter(lambda: proto.parse_length_prefixed(chakra.SCHEMA["Node"], file), None)]


# -- What the program does -----------------------------------------------------------------


def test_a_loop_runs_as_often_as_it_does(tmp_path: Path):
    program = Program(LOOP)
    assert program.executions == {"next": 3, "double": 3, "c": 1}
    assert [program.classes[name] for name in program.executions] == ["other", "cross", "other"]
    assert class_costs(program, frozenset())["cross"].flops == 3 * 4
    chakra.write(program, {("double", 0): 2e-6}, tmp_path, "loop")
    _, nodes = read_trace(tmp_path / "loop.0.et")
    doubles = [node for node in nodes if node.name == "double"]
    assert [node.duration_micros for node in doubles] == [2, 2, 2]
    assert [list(node.data_deps) for node in doubles] == [[], [doubles[0].id], [doubles[1].id]]
    assert list(nodes[-1].data_deps) == [doubles[2].id]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("jit(train_step)/lookup/jit(_where)/select_n", "lookup"),
        ("jit(s)/while/body/closed_call/transpose(jvp(top_mlp))/cond/branch_0_fun/dot", "top_mlp"),
        ("jit(s)/jvp(bottom_mlp)/ni,oi->no/dot_general", "bottom_mlp"),
        ("jit(s)/while/body/eval_jaxpr/jvp(deep)/cross/add", "deep"),
        ("jit(s)/while/body/add", None),
        ("jit(s)/jvp()/mul", None),
        ("state.embedding.tables['C1']", None),
        ("", None),
    ],
)
def test_scopes_in_names(name: str, found: str | None):
    assert scope(name) == found


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,2},{1,3}}", ((0, 2), (1, 3))),
        ("{}", ((0, 1, 2, 3),)),
        ("[2,2]<=[4]", ((0, 1), (2, 3))),
        ("[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("mesh['x'=2,'y'=2] {'x'}", ((0, 2), (1, 3))),
        ("mesh['x'=2,'y'=2] {'x','y'}", ((0, 1, 2, 3),)),
        ("mesh['x'=2,'y'=2], device_ids=([2,2]T(1,0)) {'y'}", ((0, 2), (1, 3))),
        ("mesh['x'=2,'y'=2], device_ids=(3,2,1,0) {'y'}", ((3, 2), (1, 0))),
    ],
)
def test_groups_of_devices(text: str, groups: tuple):
    assert read_groups(f", channel_id=1, replica_groups={text}, to_apply=%f", 4) == groups


def test_groups_in_another_form_are_no_groups():
    for attributes in ("", ", replica_groups=mesh['x'=4] {'x':(1)2}, to_apply=%f"):
        with pytest.raises(ValueError, match="expected groups of devices, got"):
            read_groups(attributes, 4)


def test_loops_that_the_data_end_count_once(tmp_path: Path):
    program = Program(LOOP.replace('config={"known_trip_count":{"n":"3"}}', "condition=%body"))
    # Its condition is its body, which is called twice for it.
    assert program.executions == {"next": 2, "double": 2, "c": 1}
    chakra.write(program, {}, tmp_path, "loop")
    assert len(read_trace(tmp_path / "loop.0.et")[1]) == 2 + 2 + 1  # condition, body, c


def test_every_class_is_found(compiled: tuple):
    learner, step, program = compiled
    classes = [program.classes[name] for name in program.executions]
    scopes = {"lookup", "update", "bottom_mlp", "interaction", "top_mlp", "loss", "optimizer"}
    kinds = {kind for kind, _ in compiled_collectives(step)}
    assert {*classes} - {"other"} == scopes | kinds
    assert bool(kinds) == (learner.mesh.size > 1)
    assert classes.count("other") < len(classes) / 2


def test_products_are_those_of_the_traced_step(compiled: tuple):
    learner, _, program = compiled
    arguments = learner.state_specs(), abstract_batch(learner, CONFIG.batch_size, 5)
    products = matrix_flops(make_train_step(learner), *arguments)
    costs = class_costs(program, table_arrays(program))
    flops = sum(each.flops for name, each in costs.items())
    assert products < flops < 1.5 * products
    # The interaction's two products, forward and back, of 4 vectors of width 8.
    assert costs["interaction"].flops >= 2 * 2 * 2048 * 4 * 4 * 8


def test_rows_are_counted_by_ids():
    config = dataclasses.replace(CONFIG, table_rows=(10**6,) * 3, placements=())
    learner = make_learner(config, make_mesh("1x1"))
    text = compile_step(learner, config.batch_size, config.dense_features).as_text()
    assert text is not None
    program = Program(text)
    costs = class_costs(program, table_arrays(program))
    rows = 2048 * (1 + 3 + 2) * 8 * 4
    assert costs["lookup"].row_bytes == rows
    assert costs["update"].row_bytes == 2 * rows
    assert costs["top_mlp"].row_bytes == 0


# -- Traces --------------------------------------------------------------------------------


def test_a_trace_is_a_graph_with_the_plans_collectives(compiled: tuple, tmp_path: Path):
    learner, step, program = compiled
    chakra.write(program, {}, tmp_path, "step")
    files = sorted(tmp_path.glob("step.*.et"))
    assert len(files) == learner.mesh.size
    groups = json.loads((tmp_path / "step.groups.json").read_text())
    planned = collections.Counter()
    for each in planned_collectives(learner, CONFIG.batch_size):
        planned[each.kind] += each.nbytes
    for device, file in enumerate(files):
        metadata, nodes = read_trace(file)
        assert metadata.version
        seen: set[int] = set()
        for node in nodes:
            assert node.id not in seen
            # What a node needs comes before it: there is no cycle, nor anything that is missing.
            assert {*node.data_deps, *node.ctrl_deps} <= seen
            seen.add(node.id)
        found = collections.Counter()
        sent = [node for node in nodes if node.type == chakra.COMM_COLL_NODE]
        for node in sent:
            attributes = {x.name: getattr(x, x.WhichOneof("value")) for x in node.attr}
            found[attributes["class"]] += attributes["comm_size"]
            assert attributes["comm_type"] == chakra.COLLECTIVE_TYPES[attributes["class"]]
            assert device in groups[attributes["pg_name"]]
        assert len(sent) == len(compiled_collectives(step))
        assert found == planned


def test_a_collective_without_a_type_is_refused(tmp_path: Path):
    text = LOOP.replace("negate(%b)", "collective-permute(%b), replica_groups={{0}}")
    with pytest.raises(UserError, match="the step has collective-permute"):
        chakra.write(Program(text), {}, tmp_path, "step")


# -- All together --------------------------------------------------------------------------


# Python 3.12 and later say so of a type of JAX's, which as an error ends the process.
@pytest.mark.filterwarnings("ignore:builtin type event_stats has no __module__:DeprecationWarning")
@pytest.mark.thorough
def test_classes_sum_to_the_profiled_step(monkeypatch: pytest.MonkeyPatch):
    def make_step(learner: Learner) -> Any:  # compiled quickly, a sixth has no events
        step = make_train_step(learner)
        return jax.jit(step, donate_argnames="state", compiler_options=OPTIMIZED)

    monkeypatch.setattr("experiments.characterize.measure.make_train_step", make_step)
    monkeypatch.setattr("experiments.characterize.measure._STREAM_BYTES", 2**22)
    monkeypatch.setattr("experiments.benchmarks.roofline.SIDE", 256)
    monkeypatch.setattr("experiments.benchmarks.roofline._TABLE_BYTES", 2**22)
    config = dataclasses.replace(CONFIG, batch_size=256)
    found = measure(config, make_mesh("1x2"), rounds=1, count=4)
    profile = found.profile
    assert found.profiled == pytest.approx((profile.end - profile.start) / 4)
    assert {"lookup", "update", "top_mlp", "all-to-all", DATA, IDLE} <= found.classes.keys()
    assert all(seconds >= 0 for seconds in found.classes.values())
    ran = {event.name for event in profile.events}
    # XLA may do without a scalar, but not without much.
    assert len(ran & found.program.executions.keys()) > 0.9 * len(found.program.executions)


@pytest.mark.thorough  # its parts are above
def test_the_program(tmp_path: Path):
    flags = (
        "--preset=small", "--table_rows=7,3000,40", "--embedding_dim=8", "--bottom_mlp=8",
        "--top_mlp=8,1", "--batch_size=64", "--rounds=1", "--steps_per_round=2", "--mesh=1x2",
        f"--workdir={tmp_path}", f"--picture={tmp_path / 'step.svg'}", "--sweep=mesh=1x1",
    )  # fmt: skip
    done = run(*flags, program=quickly("experiments.characterize"))
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "characterization.json").read_text())
    total = sum(each["ms"] for each in result["classes"].values())
    assert total == pytest.approx(result["profiled_ms"])
    assert result["classes"]["all-to-all"]["mib"] > 0
    assert result["sweeps"]["mesh"]["1x1"]["mesh"] == "1x1"
    assert "all-to-all" not in result["sweeps"]["mesh"]["1x1"]["classes"]
    assert (tmp_path / "step.svg").read_text().startswith("<?xml")
    page = (tmp_path / "characterization.html").read_text()
    assert "By mesh" in page
    assert "top_mlp" in page
    assert len(list((tmp_path / "chakra").glob("*.et"))) == 2


def test_sweeps_in_words():
    found = sweep.parse(["batch_size=64:128", "width"], CONFIG)
    assert found == {"batch_size": ["64", "128"], "width": ["4", "8", "16"]}
    for wrong in ("depth", "batch_size=", "batch_size=64:"):
        with pytest.raises(UserError, match="--sweep: expected some of batch_size, width"):
            sweep.parse([wrong], CONFIG)
