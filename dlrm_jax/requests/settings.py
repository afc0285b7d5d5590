"""The settings of a model that ranks candidates by a long history."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_type_hints

from dlrm_jax.config_fields import SEED_MAX, check_field, field
from dlrm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RequestSettings:
    """What is learned, and how. Every field is a flag of ``experiments.long_history``."""

    encoder: Literal["stca", "hstu", "mean"] = field(
        "stca",
        "How a candidate reads the history: STCA's stacked attention, HSTU's units, or the mean.",
    )
    max_length: int = field(
        512, "Longest history that is trained on, its latest actions; such as 2000.", 1
    )
    eval_length: int = field(
        0, "Longest history that is evaluated; 0 for max_length; such as 10000.", 0
    )
    history_sampling: int = field(
        0,
        "Part of max_length that is a sample of the older actions, another one in each epoch; 0 "
        "for none; such as 256.",
        0,
    )
    one_by_one: bool = field(
        False,
        "Whether each candidate gets its own copy of the history, and is encoded with it, as "
        "where rows of a log are single candidates.",
    )
    width: int = field(32, "Width of the tables' vectors; such as 64.", 1)
    encoder_width: int = field(
        0,
        "Width of the encoder's vectors, made by linear layers; 0 for width, without; such as 512.",
        0,
    )
    layers: int = field(2, "Layers of the encoder; such as 4.", 1)
    heads: int = field(2, "Heads of each layer's attention; such as 4.", 1)
    attention_width: int = field(
        0,
        "Width of a head's queries and keys in HSTU; 0 for the encoder's over heads; such as 128.",
        0,
    )
    linear_width: int = field(
        0,
        "Width of a head's values and gates in HSTU; 0 for the encoder's over heads; such as 128.",
        0,
    )
    dropout: float = field(
        0.0, "Share of the numbers in HSTU that are left out in training; such as 0.2."
    )
    mlp: tuple[int, ...] = field((64, 32), "Widths of the last layers; such as 128,64.", 1)
    batch_size: int = field(64, "Requests of a batch; such as 256.", 1)
    learning_rate: float = field(0.003, "Learning rate of Adam, of tables, too; such as 0.001.")
    epochs: int = field(3, "Times that each request is trained on; such as 1.", 1)
    evaluate_every: int = field(
        0, "Steps between validations; 0 for one after each epoch; such as 100.", 0
    )
    patience: int = field(
        0,
        "Validations without a better result after which training ends; 0 for any; such as 2.",
        0,
    )
    metric: Literal["auc", "log_loss", "normalized_entropy", "gauc:request"] = field(
        "auc", "Metric that decides which checkpoint is best."
    )
    seed: int = field(0, "Seed of initial values, order and samples; such as 1.", 0, SEED_MAX)

    def __post_init__(self) -> None:
        hints = get_type_hints(RequestSettings)
        for each in dataclasses.fields(self):
            check_field(each, getattr(self, each.name), hints[each.name])
        if not self.learning_rate > 0:
            raise UserError(f"learning_rate: expected a positive number, got {self.learning_rate}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout: expected a share from 0 to below 1, got {self.dropout}")
        for name in ("dropout", "attention_width", "linear_width"):
            if getattr(self, name) and self.encoder != "hstu":
                raise UserError(
                    f"encoder={self.encoder} has no {name}: expected 0, got {getattr(self, name)}; "
                    f"give --{name}=0, or --encoder=hstu"
                )
        if self.history_sampling >= self.max_length:
            raise UserError(
                f"history_sampling: expected less than max_length, {self.max_length}, whose rest "
                f"are the latest actions; got {self.history_sampling}"
            )

    @property
    def evaluated_length(self) -> int:
        """The longest history that is evaluated."""
        return self.eval_length or self.max_length
