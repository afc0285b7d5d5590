"""Optimizers of the dense parameters, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from dlrm_jax.errors import UserError


def reference_adagrad(
    learning_rate: optax.ScalarOrSchedule, eps: float = 1e-10
) -> optax.GradientTransformation:
    """Adagrad as PyTorch defines it: ``a += g²; w -= rate · g / (√a + eps)``, a from 0.

    `optax.adagrad` starts a at 0.1 and has eps inside the root.
    """

    def init(params: optax.Params) -> optax.OptState:
        return jax.tree.map(jnp.zeros_like, params)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        state = jax.tree.map(lambda a, g: a + g**2, state, updates)
        return jax.tree.map(lambda g, a: g / (jnp.sqrt(a) + eps), updates, state), state

    return optax.chain(
        optax.GradientTransformation(init, update), optax.scale_by_learning_rate(learning_rate)
    )


def dense_optimizer(
    name: str, sparse_name: str, schedule: optax.Schedule, eps: float | None
) -> optax.GradientTransformation:
    """The optimizer of the MLPs.

    Args:
        name: name of an optax optimizer; ``"same"``; or ``"adagrad"`` for the reference's formula
            instead of optax's.
        sparse_name: name of the tables' optimizer, which ``"same"`` stands for; without
            ``rowwise_``, as the DLRM reference combines them.
        schedule: learning rate by step.
        eps: eps of the optimizer; None for its default.

    Raises:
        UserError: optax has no such optimizer, or it takes no learning rate or eps.
    """
    same = name == "same"
    name = sparse_name.removeprefix("rowwise_") if same else name
    make = _find(name)
    if make is None and same:
        raise UserError(
            f"dense_optimizer: same stands for {name!r}, as of the tables, and optax has no such "
            f"optimizer; give adagrad or one of optax's, such as sgd, adam, adamw, nadamw or lamb"
        )
    if make is None:
        raise UserError(
            f"dense_optimizer: expected same, adagrad or an optimizer of optax that takes a "
            f"learning rate, such as sgd, adam, adamw, nadamw or lamb; got {name!r}"
        )
    given = {} if eps is None or name == "sgd" else {"eps": eps}
    parameters = inspect.signature(make).parameters
    if given and "eps" not in parameters:
        raise UserError(f"eps: the dense optimizer {name} has none; leave it out")
    if "key" in parameters:  # of noisy_sgd, which warns without; 0 is what it takes then
        given["key"] = 0
    try:
        made = make(learning_rate=schedule, **given)
        jax.eval_shape(made.init, jnp.zeros(1))
        return made
    # Of those that compute with the rate, such as sm3 here and rprop in its state.
    except (TypeError, ValueError) as error:
        raise UserError(
            f"dense_optimizer: expected one that takes a schedule of learning rates, such as sgd, "
            f"adam, adamw, nadamw or lamb; got {name!r}: {error}"
        ) from None


def _find(name: str) -> Callable[..., optax.GradientTransformation] | None:
    if name == "adagrad":
        return reference_adagrad
    make = getattr(optax, name, None)
    # Types, which may have no signature, have upper-case letters.
    if not callable(make) or not name.islower() or name.startswith("scale_by"):
        return None
    parameters = inspect.signature(make).parameters
    required = [
        key for key, parameter in parameters.items() if parameter.default is parameter.empty
    ]
    return make if required == ["learning_rate"] else None  # pyright: ignore[reportReturnType]
