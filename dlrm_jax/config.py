"""One run, described completely: frozen, validated on construction, changed by `replace`."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_type_hints

from dlrm_jax.config_fields import INT32_MAX, SEED_MAX, check_field, field
from dlrm_jax.config_rules import check_rules
from dlrm_jax.config_tables import TableSettings

SMALL_ROWS = (
    1460, 583, 50000, 20000, 305, 24, 4000, 633, 3, 8000, 2500, 30000, 1500, 27, 5000, 25000, 10,
    2000, 1000, 4, 15000, 18, 15, 6000, 105, 3000,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config(TableSettings):
    """What is trained, on what, and how. Every field is a flag of ``dlrm_jax train``.

    Settings of single tables name tables, as ``item=value``. A table has the name of its feature.
    """

    # Tables: one feature each.
    table_rows: tuple[int, ...] = field(
        SMALL_ROWS, "Rows of each table; with --data, the data decide; such as 1000,50000.", 1
    )
    features: tuple[str, ...] = field(
        (),
        "Names of the categorical features and their tables; without them C1, C2, …; with --data, "
        "the data decide; such as user,item.",
    )
    bag_lengths: tuple[int, ...] = field(
        (1,), "Most ids of a bag: one number, or one for each table; such as 10.", 1
    )
    embedding_dim: int = field(16, "Width of the rows, in numbers; such as 64.", 1)
    pooling: Literal["sum", "mean", "learned"] = field(
        "sum", "How the vectors of a bag are combined; learned gives each row a weight."
    )
    shared_tables: tuple[str, ...] = field(
        (), "Features that read the tables of another feature; such as C3=C2."
    )
    compression: Literal["none", "quotient_remainder", "mixed_dimensions"] = field(
        "none", "How tables with more than compress_above rows are compressed."
    )
    compress_above: int = field(
        200, "Rows up to which tables stay whole under compression; such as 1000.", 0
    )
    collisions: int = field(
        4, "Ids that share a row of the quotient table (c in the paper); such as 60.", 1
    )
    composition: Literal["product", "sum", "concat"] = field(
        "product", "How the vectors of quotient and remainder are combined."
    )
    temperature: float = field(
        0.3, "How fast width falls with rows in mixed dimensions; such as 0.2.", 0
    )
    table_dtype: Literal["float32", "bfloat16"] = field("float32", "Type of the tables.")
    stochastic_rounding: bool = field(True, "Rounds bfloat16 tables stochastically.")
    comm_dtype: Literal["float32", "bfloat16"] = field(
        "float32", "Type of the vectors that devices exchange."
    )
    placements: tuple[str, ...] = field(
        (),
        "Placements of tables: row_wise or row_wise:SHARD-SHARD, table_wise or table_wise:SHARD, "
        "column_wise, replicated, fully_sharded; the others are planned; such as "
        "C3=row_wise:0-3,C4=table_wise.",
    )
    kernels: Literal["auto", "native", "jax"] = field(
        "auto",
        "Implementation of lookups, updates and model; auto takes native ones where they are "
        "built, and those of Pallas on GPUs and TPUs; native demands that one of the three is "
        "native; jax takes XLA's.",
    )
    plan: str = field(
        "", "File that `dlrm_jax plan` wrote; without it, a plan is made; such as plan.json."
    )
    dynamic_ids: tuple[str, ...] = field(
        (),
        "Tables whose ids get rows and lose them while training, with the rows of each, and other "
        "rules if wanted: admit_count, admit_probability, evict, evict_share, max_age, defaults, "
        "parts; such as C3=100000,C4=50000:evict=lfu:admit_count=2.",
    )
    host_tables: tuple[str, ...] = field(
        (),
        "Tables in host memory, with the rows of each that devices have at a time: a cache of hot "
        "rows, which must hold all rows that a batch reads; such as C3=1000000.",
    )
    frozen_tables: tuple[str, ...] = field((), "Tables that aren't trained; such as C1,C2.")
    table_optimizers: tuple[str, ...] = field(
        (), "Optimizers of single tables, with a learning rate if wanted; such as C3=sgd:0.01."
    )

    # Model.
    model: str = field(
        "dlrm", "Model: a name in dlrm_jax.models.zoo, or MODULE:CLASS; such as dcn_v2."
    )
    model_options: tuple[str, ...] = field(
        (), "Arguments of the model's class; such as layers=3,rank=512."
    )
    dense_features: int = field(
        13, "Dense features of an example; with --data, the data decide; such as 13.", 0
    )
    bottom_mlp: tuple[int, ...] = field(
        (64, 16), "Widths of the layers below the interaction; such as 512,256,64,16.", 1
    )
    top_mlp: tuple[int, ...] = field(
        (128, 64, 1), "Widths of the layers above the interaction; such as 512,256,1.", 1
    )
    interaction: Literal["dot", "cat"] = field("dot", "How features interact in DLRM.")
    self_interaction: bool = field(False, "Adds each vector's product with itself to the dots.")
    numeric_embedding: Literal["none", "linear"] = field(
        "none",
        "How dense features are embedded: not at all, or linear, as number times a trained vector, "
        "which the model reads like that of a table.",
    )
    dropout: float = field(
        0.0,
        "Share of the outputs of each hidden layer of the MLPs that is dropped in training; such "
        "as 0.1.",
        0,
    )
    normalization: Literal["none", "batch", "layer"] = field(
        "none", "Normalization of each hidden layer of the MLPs, before its ReLU."
    )
    compute_dtype: Literal["float32", "bfloat16"] = field(
        "float32", "Type that the dense model computes in."
    )
    product_precision: Literal["float32", "tf32"] = field(
        "float32",
        "Precision of the dense model's products of float32 matrices; with tf32, which GPUs "
        "compute several times faster, CPUs don't round.",
    )

    # Optimization.
    loss: str = field(
        "bce",
        "Loss: bce, mse, fake_negative_weighted, focal:GAMMA:ALPHA, tri_bce or self_distillation "
        "with fcn or finalnet, pairwise:COLUMN or listwise:COLUMN within groups of examples, or "
        "MODULE:FUNCTION of logits and labels; such as listwise:request.",
    )
    class_weights: tuple[float, ...] = field(
        (1.0, 1.0), "Weights of label 0 and of label 1 in the loss; such as 1,4.", 0
    )
    label_weights: tuple[float, ...] = field(
        (), "Weights of several labels in the loss; without them, 1 each; such as 1,0.5.", 0
    )
    optimizer: str = field("rowwise_adagrad", "Optimizer of the tables.")
    dense_optimizer: str = field(
        "same", "Optimizer of the dense model: same, or a name in optax; such as adamw."
    )
    shard_dense_optimizer: bool = field(
        False,
        "Splits the state of the dense optimizer and its update over all devices (ZeRO-1).",
    )
    dense_comm_dtype: Literal["float32", "bfloat16"] = field(
        "float32", "Type of the gradients of the dense model that devices exchange."
    )
    learning_rate: float = field(
        0.03, "Learning rate of tables and dense model, after warm-up; such as 0.1."
    )
    eps: float = field(0.0, "Epsilon of the optimizer; 0 for its own; such as 1e-8.", 0)
    warmup_steps: int = field(0, "Steps of linear warm-up; such as 2750.", 0, INT32_MAX)
    decay_start: int = field(0, "Step at which the decay begins; such as 49315.", 0, INT32_MAX)
    decay_steps: int = field(
        0, "Steps of quadratic decay; 0 for none; such as 27772.", 0, INT32_MAX
    )
    plateau_factor: float = field(
        0.0,
        "Factor by which the learning rate is cut when best_metric isn't better in "
        "plateau_patience evaluations; 0 for no cuts; such as 0.5.",
        0,
    )
    plateau_patience: int = field(
        2,
        "Evaluations in a row without a better best_metric after which the learning rate is cut; "
        "such as 3.",
        1,
    )
    clip_norm: float = field(
        0.0, "Greatest norm of the gradient of all parameters; 0 for any; such as 1.", 0
    )
    table_l2: float = field(
        0.0,
        "Strength λ of the penalty λ/2 Σ w² of the tables, and of the vectors of "
        "numeric_embedding; 0 for none; such as 1e-5.",
        0,
    )
    table_l2_rows: Literal["touched", "all"] = field(
        "touched",
        "Rows that have the penalty of table_l2 in a step: those that the batch touches, or all, "
        "which makes each step read and write whole tables, as dense optimizers do.",
    )
    dense_l2: float = field(
        0.0,
        "Strength λ of the penalty λ/2 Σ w² of the dense model, biases included; 0 for none; such "
        "as 1e-6.",
        0,
    )
    accumulation_steps: int = field(
        1, "Micro-batches that a batch is worked through in; such as 4.", 1
    )
    pipelined: bool = field(
        False,
        "Sends the ids of the next batch to the owners of their rows while a step computes.",
    )

    # Run.
    batch_size: int = field(
        512, "Examples of one step, over all devices and micro-batches; such as 2048.", 1
    )
    evaluation_batch_size: int = field(
        8192, "Examples evaluated at a time, over all devices; such as 16384.", 1
    )
    steps: int = field(0, "Steps in all, resumed ones included; 0 for --epochs; such as 10000.", 0)
    epochs: int = field(1, "Passes over the training split; such as 2.", 1)
    log_every: int = field(100, "Steps between recorded losses; such as 10.", 1)
    eval_every: int = field(
        1000, "Steps between evaluations; 0 for one at the end; such as 5000.", 0
    )
    checkpoint_every: int = field(
        1000, "Steps between checkpoints; 0 for one at the end; such as 5000.", 0
    )
    check_copies_every: int = field(
        5000,
        "Steps between comparisons of the copies that devices have of tables and dense model, "
        "besides those at each evaluation and before each checkpoint; 0 for none at all; such as "
        "1000.",
        0,
    )
    keep_checkpoints: int = field(
        2, "Latest checkpoints that are kept, besides the best one; such as 5.", 1
    )
    metrics: tuple[str, ...] = field(
        (),
        "Further metrics: gauc:COLUMN, recall_at_precision:P, calibration_error:BUCKETS, "
        "calibration_by:COLUMN, or MODULE:FUNCTION of logits, labels and weights, with :max or "
        ":min if it can be best_metric; such as gauc:user,recall_at_precision:0.9.",
    )
    best_metric: str = field(
        "auc",
        "Validation metric that decides which checkpoint is best: auc, log_loss, accuracy, "
        "normalized_entropy, or one of metrics; of another label than the main one with its name; "
        "such as purchased/auc.",
    )
    target_auc: float = field(
        0.0, "Validation AUC that ends the run; 0 for none; such as 0.8025.", 0
    )
    patience: int = field(
        0,
        "Evaluations in a row without a better best_metric that end the run; 0 for none; such as "
        "5.",
        0,
    )
    validation_examples: int = field(
        0,
        "Validation examples, evenly spaced, that evaluations during training use; 0 for all; the "
        "summary's validation uses all; such as 1000000.",
        0,
    )
    seed: int = field(
        0, "Seed of initial values, order and generated data; such as 1.", 0, SEED_MAX
    )

    # Data.
    examples: int = field(
        2_400_000, "Examples to generate, of which 80 % train; such as 100000.", 1
    )
    teacher: Literal["pairs", "additive", "sequential"] = field(
        "pairs",
        "Model of the generated labels; additive has no products of features, with sequential the "
        "order of a history counts.",
    )
    zipf_exponent: float = field(
        1.05, "Zipf exponent of the generated ids; 0 for uniform ones; such as 1.2.", 0
    )
    shuffle_window: int = field(
        0, "Training examples that are shuffled together; 0 for all; such as 1000000.", 0
    )
    unseen_rate: float = field(
        0.0,
        "Share of the known ids of training batches that are replaced by the id of unseen values, "
        "so that its row is trained; such as 0.01.",
        0,
    )
    labels: tuple[str, ...] = field(
        (),
        "Labels of the data to train, the main one first; without it, all; such as "
        "clicked,purchased.",
    )
    min_count: int = field(
        1, "Occurrences below which values of a raw file share one id; such as 10.", 1
    )

    def __post_init__(self):
        for each in dataclasses.fields(self):
            check_field(each, getattr(self, each.name), FIELD_TYPES[each.name])
        check_rules(self)

    def identity(self) -> dict[str, object]:
        """The fields that a checkpoint must share with the run that restores it."""
        return {x: y for x, y in dataclasses.asdict(self).items() if x not in MAY_CHANGE}


FIELD_TYPES = get_type_hints(Config)

MAY_CHANGE = frozenset(
    ("placements", "plan", "host_tables", "kernels", "shard_dense_optimizer", "pipelined",
     "evaluation_batch_size", "steps", "epochs", "log_every", "eval_every", "checkpoint_every",
     "check_copies_every", "keep_checkpoints", "best_metric", "target_auc", "patience", "metrics")
)  # fmt: skip
"""The fields that may differ when a run is resumed; all others are part of its identity."""
