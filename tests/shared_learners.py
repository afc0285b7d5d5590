"""Learners that runs of a test file share, with which their programs are traced once."""

from __future__ import annotations

import dataclasses
import functools

from dlrm_jax.config import Config
from dlrm_jax.mesh import make_mesh
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.learner import Learner


def shared_learner(config: Config, mesh: str) -> Learner:
    """The learner of a config, whose number of steps it doesn't depend on."""
    return _learner(dataclasses.replace(config, steps=0), mesh)


@functools.lru_cache(maxsize=8)
def _learner(config: Config, mesh: str) -> Learner:
    return make_learner(config, make_mesh(mesh))
