"""Checks of what a checkpoint would import, before anything of it is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrm_jax.config import Config
from dlrm_jax.errors import UserError
from dlrm_jax.training.extra_metrics import extra_metrics
from dlrm_jax.training.losses import own_function
from dlrm_jax.training.metadata import read_metadata


def check_model(checkpoint: Path, config: Config, model: str | None) -> None:
    """Checks that the user names the code that a checkpoint would have imported.

    A checkpoint may come from anybody, and importing a module runs it.

    Raises:
        UserError: the checkpoint names a class of its own and ``model`` is None, or another one;
            or it is one of two towers.
    """
    if ":" in config.model:
        check_click_model(checkpoint, read_metadata(checkpoint))
    if model is None and ":" in config.model:
        raise UserError(
            f"checkpoint {checkpoint} names {config.model} as the class of its model. Importing it "
            f"runs code: if you trust that code, name it as model (--model={config.model})"
        )
    if model not in (None, config.model):
        raise UserError(f"model: checkpoint {checkpoint} names {config.model!r}, got {model!r}")


def check_click_model(checkpoint: Path, metadata: Mapping[str, Any]) -> None:
    """Checks that a checkpoint isn't one of two towers.

    Raises:
        UserError: it is.
    """
    if "retrieval" in metadata["identity"]:
        raise UserError(
            f"expected a checkpoint of a click model, but {checkpoint} is one of two towers "
            f"(retrieval), which rank items instead of rows; see items.parquet and users.parquet "
            f"in {checkpoint.parent.parent}"
        )


def check_functions(
    checkpoint: Path, config: Config, loss: str | None, metrics: Sequence[str] | None
) -> None:
    """Checks that the user names the functions that training or evaluation would import.

    Args:
        checkpoint: directory of the checkpoint, for messages.
        config: config of the checkpoint.
        loss: loss that the user gives in place of the checkpoint's; None if there is none.
        metrics: metrics in place of the checkpoint's; None if there are none.

    Raises:
        UserError: the checkpoint names a function, and the user gives nothing in its place.
    """
    trust = "Importing it runs code: if you trust that code, name it"
    if loss is None and own_function(config.loss):
        raise UserError(
            f"checkpoint {checkpoint} names {config.loss} as its loss. {trust} as loss "
            f"(--loss={config.loss})"
        )
    own = [each.name for each in extra_metrics(config.metrics) if each.function]
    if metrics is None and own:
        raise UserError(
            f"checkpoint {checkpoint} names {own[0]} among its metrics. {trust} in metrics "
            f"(--metrics={','.join(config.metrics)})"
        )
