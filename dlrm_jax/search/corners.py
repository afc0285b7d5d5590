"""Checks of a space before the data are read: its names, and configs at its ends."""

from __future__ import annotations

import dataclasses

from jax.sharding import Mesh

from dlrm_jax.config import Config
from dlrm_jax.embedding.optimizer import row_optimizer
from dlrm_jax.errors import UserError
from dlrm_jax.run_data import check_target
from dlrm_jax.search.space import Space, described
from dlrm_jax.training.build import check_config
from dlrm_jax.training.model import model_class, options, unread


def valid_corners(space: Space, base: Config, mesh: Mesh) -> list[Config]:
    """The valid ones among configs with choices and ends of ranges.

    It imports the classes of models, and so comes after the mesh is made.

    Args:
        space: space of the search.
        base: config of all trials.
        mesh: devices of a trial.

    Raises:
        UserError: a model, an optimizer or an option is unknown, the target isn't an AUC, no
            combination is valid, or none reads a setting of the space.
    """
    _check_names(space, base)
    if "target_auc" not in space.names:
        check_target(base)
    configs: list[Config] = []
    refusals: list[str] = []
    for values in space.corners():
        try:
            config = space.config(base, values)
            check_config(config, mesh)
        except UserError as error:
            refusals.append(f"{described(values)}: {error}")
        else:
            configs.append(config)
    if not configs and len(refusals) == space.size:
        raise UserError(f"space: no combination is valid; {refusals[0]}")
    by_config = [unread(config) for config in configs]
    for name in space.names if configs else ():
        if all(name in each for each in by_config):
            raise UserError(f"space: {name} has no effect {by_config[0][name]}")
    return configs


def _check_names(space: Space, base: Config) -> None:
    choices = {each.name: each.choices for each in space}
    for name in choices.get("optimizer", ()):
        row_optimizer(name, 1.0)
    models = [
        model_class(dataclasses.replace(base, model=name, interaction="cat"))
        for name in choices.get("model", (base.model,))
    ]
    for name in space.names:
        option = name.partition(".")[2]
        if option and not any(option in options(kind) for kind in models):
            known = dict.fromkeys(x for kind in models for x in options(kind))
            raise UserError(
                f"space: {name}: expected an option of the model: {', '.join(known) or 'none'}"
            )
