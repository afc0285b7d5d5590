"""What bounds the metrics of a comparison: predictions that no model can beat."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dlrm_jax.config import Config
from dlrm_jax.data.generated.order_blind import order_blind_logits
from dlrm_jax.data.generated.teacher import Teacher
from experiments.compare.tasks import Task

TEACHER = "the teacher"
ORDER_BLIND = "the teacher without the order"


def bounds(config: Config, task: Task) -> dict[str, Mapping[str, float]]:
    """Test metrics of the teacher of generated data by name; none of other data.

    If the teacher reads the order of a history, so are those of the best prediction without it,
    which models that pool their histories can't beat.
    """
    if task.data.teacher_auc is None:
        return {}
    split = task.data.test
    dense, ids = (
        np.concatenate([np.asarray(getattr(day, name)) for day in split.days])
        for name in ("dense", "ids")
    )
    shape = config.table_rows, config.table_bag_lengths, config.dense_features
    teacher = Teacher(*shape, config.zipf_exponent, config.seed, config.teacher)
    found = {TEACHER: teacher.logits(dense, ids)}
    if config.teacher == "sequential":
        found[ORDER_BLIND] = order_blind_logits(teacher, dense, ids)
    return {name: task.metrics("test", logits, split.labels) for name, logits in found.items()}
