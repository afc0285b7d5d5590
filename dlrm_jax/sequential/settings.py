"""The settings of a model of sequences."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal, get_type_hints

from dlrm_jax.config_fields import SEED_MAX, check_field, field
from dlrm_jax.errors import UserError
from dlrm_jax.training.schedule import WarmupDecay


@dataclasses.dataclass(frozen=True)
class SequentialSettings:
    """What is learned, and how. Every field is a flag of ``experiments.next_item``."""

    encoder: Literal["hstu", "sasrec", "bag"] = field(
        "hstu",
        "How a history is read: HSTU's units, SASRec's Transformer, or the mean of its items as a "
        "baseline that doesn't know the order.",
    )
    max_length: int = field(
        200, "Longest history that is read, its latest interactions; such as 50.", 1, 1_000_000
    )
    pieces: int = field(
        0,
        "Pieces of max_length targets that a user's history is cut into for training, from its end "
        "on; 0 for as many as there are; such as 1.",
        0,
    )
    width: int = field(64, "Width of the items' vectors; such as 50.", 1)
    layers: int = field(2, "Layers of the encoder; such as 8.", 1)
    heads: int = field(1, "Heads of each layer's attention; such as 2.", 1)
    hidden_width: int = field(
        0,
        "Width between the two linear layers of a layer of SASRec; 0 for that of the vectors; such "
        "as 256.",
        0,
    )
    dropout: float = field(
        0.2, "Share of the numbers in the encoder that are left out in training; such as 0.5."
    )
    normalize: bool = field(True, "Whether the vectors of histories and items have length 1.")
    temperature: float = field(
        0.05, "Number that the product of two vectors is divided by in the softmax; such as 1."
    )
    negatives: int = field(
        0,
        "Items that are drawn for each batch as the negatives of all its targets; 0 for all items, "
        "an exact softmax; such as 512.",
        0,
    )
    sampler: Literal["uniform", "frequency", "in_batch"] = field(
        "uniform",
        "How negatives are drawn: all items alike, by their interactions, or none but the targets "
        "of the batch, each other's negatives.",
    )
    batch_size: int = field(128, "Pieces of histories of a batch; such as 1024.", 1)
    learning_rate: float = field(0.001, "Learning rate of Adam, of tables, too; such as 0.003.")
    decay_start: int = field(0, "Step at which the decay begins; such as 3000.", 0)
    decay_steps: int = field(
        0,
        "Steps of the learning rate's quadratic decay; 0 for none; such as 1000.",
        0,
    )
    beta2: float = field(0.999, "Decay of Adam's means of squared gradients; such as 0.98.")
    epochs: int = field(50, "Times that each interaction is trained on; such as 100.", 1)
    evaluate_every: int = field(
        0, "Steps between validations; 0 for one after each epoch; such as 100.", 0
    )
    patience: int = field(
        10,
        "Validations without a better result after which training ends; 0 for any; such as 5.",
        0,
    )
    metric: str = field(
        "ndcg@10", "Metric that decides which checkpoint is best, with any k; such as hr@10."
    )
    at: tuple[int, ...] = field((10, 50), "Values of k in hr@k and ndcg@k; such as 10,50,200.", 1)
    exclude_seen: bool = field(False, "Whether items of the history are left out of the ranking.")
    seed: int = field(
        0, "Seed of initial values, order, dropout and negatives; such as 1.", 0, SEED_MAX
    )

    @property
    def rate(self) -> float | WarmupDecay:
        """The learning rate, or its schedule."""
        if not self.decay_steps:
            return self.learning_rate
        return WarmupDecay(self.learning_rate, 0, self.decay_start, self.decay_steps)

    @property
    def at_with_metric(self) -> tuple[int, ...]:
        """Values of k that are computed: those of ``at``, and that of the metric."""
        _, _, k = self.metric.partition("@")
        return self.at if not k or int(k) in self.at else (*self.at, int(k))

    @property
    def in_batch(self) -> bool:
        """Whether the targets of a batch are the candidates."""
        return self.sampler == "in_batch"

    @property
    def is_sampled(self) -> bool:
        """Whether a target competes with some items, and not with all."""
        return self.in_batch or self.negatives > 0

    def __post_init__(self) -> None:
        hints = get_type_hints(SequentialSettings)
        for each in dataclasses.fields(self):
            check_field(each, getattr(self, each.name), hints[each.name])
        for name in ("temperature", "learning_rate"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}: expected a positive number, got {getattr(self, name)}")
        for name in ("dropout", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(
                    f"{name}: expected a share from 0 to below 1, got {getattr(self, name)}"
                )
        if self.decay_start and not self.decay_steps:
            raise UserError(
                f"decay_start: expected 0 without decay_steps, got {self.decay_start}; give "
                f"decay_steps"
            )
        if self.hidden_width and self.encoder != "sasrec":
            raise UserError(
                f"hidden_width: expected 0 for encoder={self.encoder}, which has no such layers, "
                f"got {self.hidden_width}"
            )
        if self.in_batch and self.negatives:
            raise UserError(
                f"negatives: expected 0 with sampler=in_batch, whose negatives are the targets of "
                f"the batch, got {self.negatives}"
            )
        if not self.at:
            raise UserError("at: expected at least one number, got none")
        if not re.fullmatch(r"mrr|(hr|ndcg)@[1-9][0-9]*", self.metric):
            raise UserError(f"metric: expected hr@k, ndcg@k or mrr, got {self.metric!r}")
