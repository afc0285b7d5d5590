"""One run, described completely: frozen, validated on construction, changed by `replace`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dlrm_jax.errors import UserError

SMALL_ROWS = (
    1460, 583, 50000, 20000, 305, 24, 4000, 633, 3, 8000, 2500, 30000, 1500, 27, 5000, 25000, 10,
    2000, 1000, 4, 15000, 18, 15, 6000, 105, 3000,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained, on what, and how. Every field is a flag of the main job.

    Widths and rows are counts; per-table settings name tables C1, C2, … as ``C3=value``.
    """

    # Tables: one feature each.
    table_rows: tuple[int, ...] = SMALL_ROWS  # with --data=FILE, the file's vocabularies decide
    bag_lengths: tuple[int, ...] = (1,)  # most ids per bag: one number, or one per table
    embedding_dim: int = 16
    pooling: Literal["sum", "mean", "learned"] = "sum"  # learned: each row has a weight
    shared_tables: tuple[str, ...] = ()  # C3=C2: the feature C3 reads the tables of C2
    compression: Literal["none", "quotient_remainder", "mixed_dimensions"] = "none"
    compress_above: int = 200  # rows; smaller tables are left whole
    collisions: int = 4  # c of quotient and remainder
    composition: Literal["product", "sum", "concat"] = "product"  # of the two
    temperature: float = 0.3  # α of mixed dimensions
    table_dtype: Literal["float32", "bfloat16"] = "float32"
    stochastic_rounding: bool = True  # of bfloat16 tables
    comm_dtype: Literal["float32", "bfloat16"] = "float32"  # of vectors between devices
    placements: tuple[str, ...] = ()  # C3=row_wise[:0-3], C4=table_wise[:1], C5=column_wise, …
    kernels: Literal["auto", "native", "jax"] = "auto"  # see dlrm_jax.native
    plan: str = ""  # a file that python -m dlrm_jax plan wrote; "" for a plan made at the start
    frozen_tables: tuple[str, ...] = ()  # C1, C2
    table_optimizers: tuple[str, ...] = ()  # C3=sgd or C3=sgd:0.01, with its learning rate

    # Model.
    model: str = "dlrm"  # a name in dlrm_jax.models.zoo, or MODULE:CLASS
    model_options: tuple[str, ...] = ()  # layers=3, rank=512: arguments of its class
    dense_features: int = 13
    bottom_mlp: tuple[int, ...] = (64, 16)
    top_mlp: tuple[int, ...] = (128, 64, 1)
    interaction: Literal["dot", "cat"] = "dot"
    self_interaction: bool = False
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # of the MLPs

    # Optimization.
    loss: Literal["bce", "mse"] = "bce"
    class_weights: tuple[float, ...] = (1.0, 1.0)  # of label 0 and of label 1
    optimizer: Literal["sgd", "adagrad", "rowwise_adagrad", "adam"] = "rowwise_adagrad"
    dense_optimizer: str = "same"  # or the name of an optax optimizer
    learning_rate: float = 0.03
    eps: float = 0.0  # 0 for the optimizer's own
    warmup_steps: int = 0
    decay_start: int = 0
    decay_steps: int = 0
    clip_norm: float = 0.0  # 0 for none
    accumulation_steps: int = 1  # micro-batches a batch is worked through in

    # Run.
    batch_size: int = 512  # of one step, over all devices and micro-batches
    evaluation_batch_size: int = 8192
    steps: int = 0  # in all, resumed ones included; 0 for `epochs`
    epochs: int = 1
    log_every: int = 100  # steps between the losses that are kept
    eval_every: int = 1000  # steps; 0 for only at the end
    checkpoint_every: int = 1000  # steps; 0 for only at the end
    keep_checkpoints: int = 2  # the latest ones; the best one is kept besides
    best_metric: Literal["auc", "log_loss", "accuracy", "normalized_entropy"] = "auc"
    target_auc: float = 0.0  # stop once validation reaches it; 0 for never
    seed: int = 0

    # Data.
    examples: int = 2_400_000  # to generate, of which 80 % train
    teacher: Literal["pairs", "additive"] = "pairs"  # additive: of generated labels, no products
    zipf_exponent: float = 1.05  # of the generated ids; 0 for uniform
    shuffle_window: int = 0  # training examples shuffled among each other; 0 for all
    min_count: int = 1  # rarer values in a file share the id of unseen ones

    def __post_init__(self):
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name), FIELD_TYPES[field.name])
        for name, low in _LOWEST.items():
            value = getattr(self, name)
            for item in value if isinstance(value, tuple) else (value,):
                if not item >= low:  # also catches NaN
                    raise UserError(f"{name}: expected at least {low}, got {item}")
        if not self.table_rows:
            raise UserError("table_rows: expected at least one number, got none")
        if not 0 < self.learning_rate < float("inf"):
            raise UserError(f"learning_rate: expected a positive number, got {self.learning_rate}")
        if len(self.class_weights) != 2:
            raise UserError(f"class_weights: expected two numbers, got {self.class_weights}")
        if len(self.bag_lengths) not in (1, len(self.table_rows)):
            raise UserError(
                f"bag_lengths: expected one number, or one for each of the "
                f"{len(self.table_rows)} tables, got {len(self.bag_lengths)}"
            )
        if (
            self.model == "dlrm"
            and self.interaction == "dot"
            and (self.bottom_mlp[-1:] != (self.embedding_dim,))
        ):
            raise UserError(
                f"bottom_mlp: dot interaction needs it to end in embedding_dim = "
                f"{self.embedding_dim}, got {self.bottom_mlp}"
            )
        if self.pooling == "learned" and self.compression != "none":
            raise UserError(
                f"pooling: learned weights are for tables that aren't compressed, got "
                f"compression={self.compression}"
            )
        if self.plan and self.placements:
            raise UserError(
                f"placements: they have no effect with a plan, which says where every table is, "
                f"got {','.join(self.placements)} and {self.plan}"
            )
        if self.top_mlp[-1:] != (1,):
            raise UserError(f"top_mlp: expected it to end in 1, the logit, got {self.top_mlp}")
        if self.batch_size % self.accumulation_steps:
            raise UserError(
                f"batch_size: {self.batch_size} is not divisible by accumulation_steps = "
                f"{self.accumulation_steps}"
            )

    @property
    def table_names(self) -> tuple[str, ...]:
        """C1, C2, … as Criteo names its categorical columns."""
        return tuple(f"C{i + 1}" for i in range(len(self.table_rows)))

    @property
    def table_bag_lengths(self) -> tuple[int, ...]:
        """The longest bag of each table."""
        return self.bag_lengths * (len(self.table_rows) if len(self.bag_lengths) == 1 else 1)

    def identity(self) -> dict[str, object]:
        """The fields that a checkpoint must share with the run that restores it."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if name not in MAY_CHANGE}

    @property
    def table_of(self) -> dict[str, str]:
        """Whose tables each feature reads: its own, or those of another that it shares.

        Raises:
            UserError: `shared_tables` names no table, or one that is shared itself or of another
                size.
        """
        shared = self.per_table("shared_tables")
        rows = dict(zip(self.table_names, self.table_rows, strict=True))
        for name, owner in shared.items():
            if owner not in rows or owner in shared or owner == name or rows[name] != rows[owner]:
                raise UserError(
                    f"shared_tables: expected {name} to name another table with {rows[name]} rows "
                    f"that isn't shared itself, got {owner!r}"
                )
        return {name: shared.get(name, name) for name in self.table_names}

    def per_table(self, field: str) -> dict[str, str]:
        """Reads ``("C3=value", …)`` as a mapping from table names.

        Raises:
            UserError: an item isn't of that form, or names no table.
        """
        settings = {}
        for item in getattr(self, field):
            name, separator, value = item.partition("=")
            if not separator or name not in self.table_names:
                raise UserError(
                    f"{field}: expected TABLE=VALUE with a table of C1..C{len(self.table_rows)}, "
                    f"got {item!r}"
                )
            if name in settings:
                raise UserError(f"{field}: {name} is set twice")
            settings[name] = value
        return settings


FIELD_TYPES = get_type_hints(Config)

# Earlier names of fields, which checkpoints still have.
_RENAMED = {"exchange_dtype": "comm_dtype"}


def saved_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that a checkpoint keeps, under the names of this version.

    A field that is newer than the checkpoint gets its default, which means what was done before.

    Args:
        fields: fields of a config, or some of them beside others, as JSON gives them.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(Config)}
    return defaults | {_RENAMED.get(name, name): value for name, value in fields.items()}


MAY_CHANGE = frozenset(
    ("placements", "plan", "kernels", "evaluation_batch_size", "steps", "epochs", "log_every",
     "eval_every", "checkpoint_every", "keep_checkpoints", "best_metric", "target_auc")
)  # fmt: skip
"""The fields that may differ when a run is resumed; all others are part of its identity."""

_LOWEST = {
    **dict.fromkeys(
        ("table_rows", "bag_lengths", "embedding_dim", "bottom_mlp", "top_mlp",
         "accumulation_steps", "batch_size", "evaluation_batch_size", "epochs",
         "keep_checkpoints", "log_every", "examples", "min_count", "collisions"),
        1,
    ),
    **dict.fromkeys(
        ("class_weights", "eps", "warmup_steps", "decay_start", "decay_steps", "clip_norm",
         "steps", "eval_every", "checkpoint_every", "compress_above", "temperature",
         "dense_features", "target_auc", "seed", "zipf_exponent",
         "shuffle_window"),
        0,
    ),
}  # fmt: skip


def _check_type(name: str, value: object, kind: object) -> None:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise UserError(f"{name}: expected one of {', '.join(get_args(kind))}, got {value!r}")
        return
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        good = isinstance(value, tuple) and all(type(x) in _accepted(item) for x in value)
        wanted = f"a tuple of {item.__name__}"
    else:
        assert isinstance(kind, type)
        good = type(value) in _accepted(kind)
        wanted = kind.__name__
    if not good:
        raise UserError(f"{name}: expected {wanted}, got {value!r}")


def _accepted(kind: type) -> tuple[type, ...]:
    return (int, float) if kind is float else (kind,)
