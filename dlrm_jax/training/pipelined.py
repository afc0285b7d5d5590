"""A train step that routes the ids of the next batch.

The exchange of ids needs no table, and no result of the step before. In one program with the rest
of that step, XLA may run it meanwhile, as it does with asynchronous collectives of accelerators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from dlrm_jax.data.batches import Batch
from dlrm_jax.embedding.sharded_ops import routed_specs
from dlrm_jax.embedding.state import RoutedIds
from dlrm_jax.training.learner import Learner, TrainState
from dlrm_jax.training.step import route, step_routed


def make_pipelined_step(
    learner: Learner,
) -> Callable[..., tuple[TrainState, Float[Array, ""], RoutedIds]]:
    """Makes the train step ``state, loss, routed = step(state, batch, routed, following)``.

    It takes the routed ids of its own batch and returns those of the following one. A fifth
    argument is the third of `make_train_step`; loss and state are the same as there, but for last
    bits where XLA fuses otherwise.
    """

    def train_step(
        state: TrainState,
        batch: Batch,
        routed: RoutedIds,
        following: Batch,
        rate_factor: Float[Array, ""] | None = None,
    ) -> tuple[TrainState, Float[Array, ""], RoutedIds]:
        ahead = route(learner, following)
        state, loss = step_routed(learner, state, batch, routed, rate_factor)
        return state, loss, ahead

    # Routed ids aren't donated: the new ones would have to wait until the old ones are read.
    return learner.jit(train_step, donate_argnames="state")


class PipelinedStep:
    """The train step ``state, loss = step(state, batch, following)``, see `make_pipelined_step`.

    It keeps the routed ids of the following batch, which it expects to be the next one. If another
    one comes, as at the start, its ids are routed first.

    Args:
        learner: learner of the step.
    """

    def __init__(self, learner: Learner):
        self._step = make_pipelined_step(learner)
        self._route = jax.jit(lambda batch: route(learner, batch))
        self._expected: Batch | None = None
        self._routed: RoutedIds | None = None

    def __call__(
        self,
        state: TrainState,
        batch: Batch,
        following: Batch,
        rate_factor: Float[Array, ""] | None = None,
    ) -> tuple[TrainState, Float[Array, ""]]:
        """Takes a step; the arguments are those of `make_pipelined_step`."""
        routed = self._routed if batch is self._expected else self._route(batch)
        self._expected = following
        state, loss, self._routed = self._step(state, batch, routed, following, rate_factor)
        return state, loss


def abstract_routed(learner: Learner, batch: Batch) -> RoutedIds:
    """Shapes, dtypes and shardings of the routed ids of a batch, which may be abstract."""
    leading = () if learner.accumulation_steps == 1 else (None,)
    shapes = jax.eval_shape(lambda batch: route(learner, batch), batch)

    def placed(spec: jax.sharding.PartitionSpec, shapes: Any) -> Any:
        sharding = learner.axes.sharding(jax.sharding.PartitionSpec(*leading, *spec))
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes
        )

    return jax.tree.map(placed, routed_specs(learner.collection.per_device), shapes)
