"""The step of a machine that isn't there, compiled on emulated devices."""

from __future__ import annotations

import re
import signal

import pytest
from main_job import run

from dlrm_jax.presets import preset

PROGRAM = ("-m", "dlrm_jax", "compile")


def test_memory_and_collectives_of_the_compiled_step():
    flags = ("--optimizer=adagrad", "--clip_norm=1")
    split = ("--shard_dense_optimizer", "--top_mlp=499,499,512,1")
    result = run("--preset=small", "--mesh=4x4", *flags, *split, program=PROGRAM)
    assert result.returncode == 0, result.stderr[-2000:]
    text = result.stdout
    config = preset("small")
    weights = _number(r"^tables +(\S+)$", text)
    state = _number(r"^state of their optimizers +(\S+)$", text)
    rows = sum(config.table_rows)
    assert weights * 2**30 >= rows * config.embedding_dim * 4 / 4  # four shards, padded
    assert weights == state  # Adagrad has a number an element
    assert _number(r"^all arguments of the program +(\S+)$", text) > weights + state
    whole = _number(r"^of its parameters, updated on each device +(\S+)$", text)  # (_, 499)
    assert 0 < whole < _number(r"^dense model +(\S+)$", text)
    temporaries = _number(r"^temporaries +(\S+)$", text)
    estimated = _number(r"^temporaries, estimated without activations +(\S+)$", text)
    assert 0.5 <= estimated / temporaries <= 2
    assert re.search(r"^all-to-all +model +vectors ", text, re.M)
    for kind in ("all-gather", "all-reduce", "all-to-all"):
        planned, compiled = re.findall(rf"^{kind} +([\d,]+) +([\d,]+)$", text, re.M)[0]
        assert planned == compiled != "0"


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(  # by default in `test_compiled.py`
            ("--placements=C3=fully_sharded", "--model=deepfm"), marks=pytest.mark.thorough
        ),
        pytest.param(
            ("--placements=C1=fully_sharded,C3=fully_sharded", "--pooling=learned",
             "--bag_lengths=3", "--accumulation_steps=2"),
            marks=pytest.mark.thorough,
        ),
    ],
)  # fmt: skip
def test_tables_that_the_same_ids_read_ask_for_their_rows_once(flags):
    """Each has a table of weights of width 1 beside that of vectors."""
    small = ("--preset=small", "--batch_size=512", "--mesh=2x4")
    result = run(*small, *flags, program=PROGRAM)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize(
    ("mesh", "placement", "flags"),
    [
        pytest.param(
            "1x1",
            "table_wise",
            ["--optimizer=adam", "--table_optimizers=C1=sgd"],
            marks=pytest.mark.thorough,
        ),
        ("2x2", "column_wise", ["--optimizer=rowwise_adagrad"]),  # whose means are exchanged
        pytest.param("2x2", "fully_sharded", ["--optimizer=adagrad"], marks=pytest.mark.thorough),
        pytest.param(
            "1x1",
            "table_wise",
            ["--optimizer=rowwise_adagrad", "--table_dtype=bfloat16"],
            marks=pytest.mark.thorough,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_updates_of_all_rows_make_arrays_as_large_as_tables(
    mesh: str, placement: str, flags: list[str]
):
    small = "--preset=small", "--batch_size=64", "--table_rows=200000,200000", "--dense_features=4"
    layers = "--embedding_dim=16", "--bottom_mlp=16", "--top_mlp=16,1"
    all_rows = "--table_l2=1e-3", "--table_l2_rows=all"
    placed = f"--mesh={mesh}", f"--placements=C1={placement},C2={placement}"
    given = *small, *layers, *all_rows, *placed, *flags
    result = run(*given, program=PROGRAM, XLA_FLAGS="")  # which change the arrays
    assert result.returncode == 0, result.stderr[-2000:]
    temporaries = _number(r"^temporaries +(\S+)$", result.stdout)
    estimated = _number(r"^temporaries, estimated without activations +(\S+)$", result.stdout)
    assert temporaries > 0.01
    assert 0.8 <= estimated / temporaries <= 1.3


@pytest.mark.thorough
def test_tables_that_exceed_the_memory_are_noted():
    small = "--preset=small", "--mesh=1x1", "--embedding_dim=128", "--bottom_mlp=128"
    for rows, noted in (("30000000", True), ("100", False)):
        result = run(*small, f"--table_rows={rows}", program=PROGRAM)
        assert result.returncode == 0, result.stderr[-2000:]
        assert ("note: tables and their state exceed the 12 GiB" in result.stdout) == noted


def test_a_batch_that_does_not_fit_the_mesh_is_refused():
    result = run("--preset=small", "--mesh=4x4", "--batch_size=1000", program=PROGRAM)
    assert result.returncode == 2
    assert re.fullmatch(r"error: --batch_size: 1000 samples .*16 devices.*\n", result.stderr)


WITHOUT_A_PLAN = """
from dlrm_jax.cli.main import main
from dlrm_jax.training import compiled
compiled.planned_collectives = lambda *of: ()
main("compile")
"""


def test_other_collectives_than_those_of_the_plan_end_in_one_message():
    result = run("--preset=small", "--mesh=8x1", program=("-c", WITHOUT_A_PLAN))
    assert result.returncode == 2
    assert re.fullmatch(
        r"error: expected the compiled step to have the collectives of the plan, got "
        r".*[\d,]+ bytes of all-reduce instead of 0; .*\n",
        result.stderr,
    )


# As with Ctrl-C while XLA's compiler for GPUs waits for a process that it has started.
STOPPED = """
import os, signal, sys
import jax
from dlrm_jax.cli.main import main
own = {"__name__": "jax.compiler", "os": os, "number": %d, "error": jax.errors.JaxRuntimeError}
exec("def compile(lowered):\\n os.kill(os.getpid(), number)\\n raise error('ptxas died')", own)
jax.stages.Lowered.compile = own["compile"]
main("compile")
"""


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.thorough)]
)
def test_a_compiler_that_a_signal_ends_leaves_no_traceback(number: signal.Signals):
    given = "--preset=small", "--table_rows=50,90", "--top_mlp=8,1", "--mesh=1x1"
    result = run(*given, program=("-c", STOPPED % number))
    assert result.returncode == 128 + number
    assert result.stderr.splitlines() == [
        f"{number.name}: stopping after this computation; again: at once",
        f"stopped by {number.name}",
    ]


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text, re.M)
    assert found, pattern
    return float(found[1])
