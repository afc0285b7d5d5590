"""A step that routes the next batch's ids has the bits of one that doesn't, and can overlap it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np
import pytest
from drawn_batches import SAMPLES, make_batches
from named_arrays import initial_arrays, start
from setups import DENSE, Setup, train

from dlrm_jax.data.batches import Batch
from dlrm_jax.training.compiled import compile_step, compiled_collectives, planned_collectives
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.pipelined import PipelinedStep

STEPS = 4


def train_pipelined(
    learner: Learner, state: TrainState, batches: Sequence[Batch]
) -> tuple[TrainState, np.ndarray, PipelinedStep]:
    """`setups.train` with a `PipelinedStep`, which it returns, too."""
    step = PipelinedStep(learner)
    placed = [learner.put(batch) for batch in batches]
    losses = []
    for batch, following in zip(placed, [*placed[1:], placed[-1]], strict=True):
        state, loss = jax.block_until_ready(step(state, batch, following))
        losses.append(float(loss))
    return state, np.array(losses), step


@pytest.mark.parametrize(
    ("setup", "weighted"),
    [
        # `test_exactness.py` has it, so that the plain step is compiled once for both.
        (Setup("2x4", "adagrad", placed="devices", clip_norm=0.15, accumulation_steps=2), True),
        pytest.param(
            Setup("4x2", "adam", placed="columns", clip_norm=0.15, accumulation_steps=2),
            False,
            marks=pytest.mark.thorough,
        ),
        pytest.param(Setup("1x1", "sgd"), True, marks=pytest.mark.thorough),
        *(
            pytest.param(setup, weighted, marks=pytest.mark.thorough)
            for setup in (
                Setup("8x1", "adagrad", placed="devices", clip_norm=1.0, accumulation_steps=4),
                Setup("1x8", "rowwise_adagrad", placed="devices", comm_dtype="bfloat16"),
                Setup("2x4", "rowwise_adagrad", label_weights=(1.0, 0.5)),
                Setup("2x4", "adam", placed="devices", shard_dense_optimizer=True),
            )
            for weighted in (True, False)
        ),
    ],
    ids=str,
)
def test_losses_and_state_have_the_bits_of_the_plain_step(setup: Setup, weighted: bool):
    with jax.enable_x64(True):
        batches = make_batches(
            setup.dtype, weighted=weighted, count=STEPS, labels=len(setup.label_weights)
        )
        learner, initial = setup.learner(), initial_arrays(setup)
        expected, losses = train(learner, start(learner, initial), batches, STEPS)
        state, found, step = train_pipelined(learner, start(learner, initial), batches)
        np.testing.assert_array_equal(found, losses)
        jax.tree.map(np.testing.assert_array_equal, state, expected)
        assert (step._step._cache_size(), step._route._cache_size()) == (1, 1)  # pyright: ignore


_INSTRUCTION = re.compile(r"^\s*(ROOT )?%(\S+) = (.*?) ([a-z][\w-]*)\((.*)$", re.MULTILINE)


def test_nothing_of_the_step_depends_on_the_exchange_of_the_next_ids_nor_it_on_the_step():
    """Every instruction reads arguments of the next batch alone, or none of them.

    No more is sent than by the plain step, which `planned_collectives` describes.
    """
    learner = Setup("2x4", placed="devices", dtype="float32").learner()
    compiled = compile_step(learner, 4 * SAMPLES, DENSE, True, pipelined=True)
    planned, found = Counter(), Counter()
    for each in planned_collectives(learner, 4 * SAMPLES, True):
        planned[each.kind] += each.nbytes
    for kind, nbytes in compiled_collectives(compiled):
        found[kind] += nbytes
    assert found == planned
    text = compiled.as_text()
    assert text is not None
    entry = text[text.index("\nENTRY") :]
    sources: dict[str, set[str]] = {}  # the arguments that each instruction depends on
    exchanges = []
    for is_root, name, shape, operation, rest in _INSTRUCTION.findall(entry):
        if operation == "parameter":
            argument = re.search(r'op_name="(\w+)', rest)
            assert argument is not None
            sources[name] = {argument[1]}
            continue
        operands = [sources[x] for x in re.findall(r"%([\w.-]+)", rest) if x in sources]
        sources[name] = set().union(*operands)
        if not is_root:
            assert sources[name] <= {"following"} or "following" not in sources[name], name
        if operation == "all-to-all" and "s32" in shape:
            exchanges.append(sources[name])
    # Two stages for each of two slabs over all devices, and one exchange for all others.
    assert exchanges == 5 * [{"following"}]
