"""The data that a run was trained on, found again."""

from __future__ import annotations

from pathlib import Path

from dlrm_jax.config import Config
from dlrm_jax.data.arrays import Dataset
from dlrm_jax.errors import UserError
from dlrm_jax.run_data import load_data
from dlrm_jax.training.config_data import generated_fingerprint


def data_of_run(
    config: Config, fingerprint: str | None, source: Path | None, checkpoint: Path
) -> Dataset | None:
    """The data of a run; None if they are neither given nor generated.

    Args:
        config: config of the run.
        fingerprint: fingerprint of its data.
        source: directory or raw file that the user gives; None if there is none.
        checkpoint: checkpoint of the run, for messages.

    Raises:
        UserError: they can't be read, or are others than those of the run.
    """
    if source is None and fingerprint != generated_fingerprint(config):
        return None
    _, data = load_data(config, source)
    if fingerprint not in (data.fingerprint, *data.earlier_fingerprints):
        raise UserError(
            f"data: {checkpoint} was trained on other data than {source}: its ids mean other "
            f"values; give the data of the training"
        )
    return data
