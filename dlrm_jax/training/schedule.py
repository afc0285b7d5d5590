"""The learning rate over time, for tables and dense parameters alike."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

FLOOR = 1e-7


@dataclasses.dataclass(frozen=True)
class WarmupDecay:
    """Linear warm-up, constant, quadratic decay, constant: the DLRM reference's policy.

    With s the number of the step from 1: ``base·s/warmup`` while s < warmup; then base;
    from ``decay_start`` on ``base·((decay_steps - (s - decay_start)) / decay_steps)²``,
    at least 1e-7, or base if that is less; and from ``decay_start + decay_steps`` on the
    last of these. So a base of 0 is 0 at every step. Differs from the reference where that
    has a flaw: between warm-up and decay it keeps the warm-up's last value instead of base.

    Equal schedules compare equal, so tables that use them can share one array.

    Attributes:
        base: learning rate between warm-up and decay.
        warmup: number of steps of warm-up; 0 for none.
        decay_start: step at which the decay begins.
        decay_steps: number of steps of decay; 0 for none.
    """

    base: float
    warmup: int = 0
    decay_start: int = 0
    decay_steps: int = 0

    def __call__(self, count: ArrayLike) -> Float[Array, ""]:
        """The learning rate of the update after ``count`` earlier ones, as in optax."""
        step = jnp.asarray(count, jnp.result_type(float)) + 1
        rate = jnp.full_like(step, self.base)
        if self.decay_steps:
            left = jnp.clip(self.decay_steps - (step - self.decay_start), 1, self.decay_steps)
            decayed = self.base * (left / self.decay_steps) ** 2
            decayed = jnp.maximum(decayed, min(FLOOR, self.base))
            rate = jnp.where(step > self.decay_start, decayed, rate)
        if self.warmup:
            rate = jnp.where(step < self.warmup, self.base * step / self.warmup, rate)
        return rate
