"""Rules that the fields of a config keep together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlrm_jax.errors import UserError
from dlrm_jax.feature_names import check_names

if TYPE_CHECKING:
    from dlrm_jax.config import Config


def check_rules(config: Config) -> None:
    """Checks fields whose types and ranges are right already.

    Raises:
        UserError: two of them contradict each other, or one has no use; the message begins with
            its name.
    """
    _check_data(config)
    _check_model(config)
    _check_optimization(config)


def _check_data(config: Config) -> None:
    if not config.table_rows:
        raise UserError("table_rows: expected at least one number, got none")
    if config.features:
        check_names("features", config.features, len(config.table_rows))
    weights = config.class_weights
    if len(weights) != 2 or not any(weights):
        raise UserError(
            f"class_weights: expected two numbers of 0 or more, not both 0, got {weights}"
        )
    if config.labels:
        check_names("labels", config.labels, len(config.labels))
    if config.label_weights and not any(config.label_weights):
        raise UserError("label_weights: expected a number above 0, got zeros alone")
    if len(config.bag_lengths) not in (1, len(config.table_rows)):
        raise UserError(
            f"bag_lengths: expected one number, or one for each of the "
            f"{len(config.table_rows)} tables, got {len(config.bag_lengths)}"
        )


def _check_model(config: Config) -> None:
    dots = config.model == "dlrm" and config.interaction == "dot"
    if dots and config.bottom_mlp[-1:] != (config.embedding_dim,):
        raise UserError(
            f"bottom_mlp: dot interaction needs it to end in embedding_dim = "
            f"{config.embedding_dim}, got {config.bottom_mlp}"
        )
    if config.dropout >= 1:
        raise UserError(f"dropout: expected a share below 1, got {config.dropout}")
    if config.unseen_rate >= 1:
        raise UserError(f"unseen_rate: expected a share below 1, got {config.unseen_rate}")
    if config.pooling == "learned" and config.compression != "none":
        raise UserError(
            f"pooling: learned weights are for tables that aren't compressed, got "
            f"compression={config.compression}"
        )
    if config.plan and config.placements:
        raise UserError(
            f"placements: they have no effect with a plan, which says where every table is, "
            f"got {','.join(config.placements)} and {config.plan}"
        )
    if config.top_mlp[-1:] != (1,):
        raise UserError(f"top_mlp: expected it to end in 1, the logit, got {config.top_mlp}")


def _check_optimization(config: Config) -> None:
    if config.learning_rate <= 0:
        raise UserError(f"learning_rate: expected a positive number, got {config.learning_rate}")
    if config.plateau_factor >= 1:
        raise UserError(
            f"plateau_factor: expected a number below 1, got {config.plateau_factor}; it "
            f"multiplies the learning rate"
        )
    for name in ("patience", "plateau_factor"):
        if getattr(config, name) and not config.eval_every:
            raise UserError(
                f"{name}: it counts the evaluations during training, and eval_every=0 has "
                f"none; give the steps between them, such as eval_every=1000"
            )
    if config.plateau_factor and 0 < config.patience <= config.plateau_patience:
        raise UserError(
            f"patience: expected more than plateau_patience = {config.plateau_patience}, got "
            f"{config.patience}; the run would end before a cut could have an effect"
        )
    if config.batch_size % config.accumulation_steps:
        raise UserError(
            f"batch_size: {config.batch_size} is not divisible by accumulation_steps = "
            f"{config.accumulation_steps}"
        )
