"""Named configurations: published ones, and defaults of the experiments."""

from __future__ import annotations

import dataclasses
import functools

from dlrm_jax.config import Config
from dlrm_jax.errors import UserError

KAGGLE_ROWS = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27,
    14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip
TERABYTE_ROWS = (
    9980333, 36084, 17217, 7378, 20134, 3, 7112, 1442, 61, 9758201, 1333352, 313829, 10, 2208,
    11156, 122, 4, 970, 14, 9994222, 7267859, 9946608, 415421, 12420, 101, 36,
)  # fmt: skip
MLPERF_ROWS = (
    39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10, 2208,
    11938, 155, 4, 976, 14, 39979771, 25641295, 39664984, 585935, 12972, 108, 36,
)  # fmt: skip
MLPERF_V2_ROWS = (
    40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282, 10, 2209,
    11938, 155, 4, 976, 14, 40000000, 40000000, 40000000, 590152, 12973, 108, 36,
)  # fmt: skip
MLPERF_V2_BAG_LENGTHS = (
    3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1,
)  # fmt: skip
# As many rows as Criteo_x1 has, 2,086,303 (FuxiCTR counts 20,863,160 numbers in its tables of width
# 10, of which 130 embed dense features), divided like Kaggle's values that come several times.
CRITEO_X1_ROWS = (
    1461, 558, 413049, 260741, 306, 20, 12136, 634, 4, 51298, 5302, 409628, 3179, 27,
    12191, 370969, 11, 4841, 2086, 4, 399373, 17, 16, 79734, 96, 58622,
)  # fmt: skip

# The reference's command lines; docs/index.md describes them.
PRESETS: dict[str, Config] = {
    "small": Config(),
    # Small enough for many models to converge in a minute or less each.
    "comparison": Config(
        table_rows=(3, 10, 18, 24, 27, 60, 105, 300, 600, 1000, 2000, 5000),
        embedding_dim=8,
        dense_features=4,
        bottom_mlp=(32, 8),
        top_mlp=(64, 32, 1),
        batch_size=1024,
        examples=600_000,
    ),
    # With a history, C7, of items such as C6; every teacher labels it, and every model reads it.
    "comparison_history": Config(
        table_rows=(3, 10, 24, 60, 105, 120, 120),
        bag_lengths=(1, 1, 1, 1, 1, 1, 12),
        embedding_dim=8,
        dense_features=4,
        bottom_mlp=(32, 8),
        top_mlp=(64, 32, 1),
        batch_size=512,
        examples=300_000,
    ),
    # For experiments.movielens: the data determine the tables and have no dense features. The
    # width is the best of 16, 24, 32 and 48 for DLRM on the validation split of 100K's clicks.
    "movielens": Config(
        embedding_dim=24,
        dense_features=0,
        bottom_mlp=(64, 24),
        top_mlp=(256, 128, 1),
        batch_size=256,
        epochs=10,
    ),
    "kaggle": Config(
        table_rows=KAGGLE_ROWS,
        embedding_dim=16,
        bottom_mlp=(512, 256, 64, 16),
        top_mlp=(512, 256, 1),
        optimizer="sgd",
        learning_rate=0.1,
        batch_size=128,
        eval_every=10_000,
        checkpoint_every=10_000,
    ),
    "terabyte": Config(
        table_rows=TERABYTE_ROWS,
        embedding_dim=64,
        bottom_mlp=(512, 256, 64),
        top_mlp=(512, 512, 256, 1),
        optimizer="sgd",
        learning_rate=0.1,
        batch_size=2048,
        eval_every=10_000,
        checkpoint_every=10_000,
    ),
    "mlperf_v1": Config(
        table_rows=MLPERF_ROWS,
        embedding_dim=128,
        bottom_mlp=(512, 256, 128),
        top_mlp=(1024, 1024, 512, 256, 1),
        optimizer="sgd",
        learning_rate=1.0,
        batch_size=2048,
        eval_every=10_000,
        checkpoint_every=10_000,
    ),
    # MLPerf's recommendation_v2.
    "mlperf_v2": Config(
        table_rows=MLPERF_V2_ROWS,
        bag_lengths=MLPERF_V2_BAG_LENGTHS,
        embedding_dim=128,
        model="dcn_v2",
        model_options=("layers=3", "rank=512"),
        bottom_mlp=(512, 256, 128),
        top_mlp=(1024, 1024, 512, 256, 1),
        optimizer="rowwise_adagrad",
        learning_rate=0.005,
        eps=1e-8,
        batch_size=65_536,
        evaluation_batch_size=65_536,
        eval_every=3_000,
        checkpoint_every=3_000,
    ),
    # FuxiCTR's recipe for Criteo_x1, whose 33,003,326 training examples are 8,057 batches: all 39
    # fields have vectors, each epoch is evaluated, and the rate is cut where one isn't better.
    "ctr_x1": Config(
        table_rows=CRITEO_X1_ROWS,
        embedding_dim=10,
        bottom_mlp=(10,),
        top_mlp=(500, 500, 500, 1),
        numeric_embedding="linear",
        dropout=0.1,
        table_l2=1e-5,
        table_l2_rows="all",
        optimizer="adam",
        learning_rate=0.001,
        clip_norm=10.0,
        plateau_factor=0.1,
        plateau_patience=1,
        patience=2,
        batch_size=4096,
        epochs=100,
        eval_every=8057,
        checkpoint_every=8057,
    ),
    "profile": Config(
        table_rows=(1_000_000,) * 8,
        bag_lengths=(100,),
        embedding_dim=64,
        dense_features=512,
        bottom_mlp=(512, 64),
        top_mlp=(1024, 1024, 1024, 1),
        optimizer="sgd",
        learning_rate=0.1,
        batch_size=2048,
        examples=50_000,
        zipf_exponent=0.0,
    ),
}

# The same with other models, each with the settings of its best result there: BARS,
# github.com/reczoo/BARS, ranking/ctr/MODEL/MODEL_criteo_x1.
_X1 = functools.partial(dataclasses.replace, PRESETS["ctr_x1"])
PRESETS |= {
    "ctr_x1_autoint_plus": _X1(
        model="autoint_plus",
        model_options=("layers=3", "head_width=128", "layer_norm=true", "attention_dropout=0.1"),
        top_mlp=(400, 400, 400, 1),
        normalization="batch",
    ),
    "ctr_x1_afn": _X1(
        model="afn",
        model_options=("neurons=400",),
        top_mlp=(800, 1),
        dropout=0.5,
    ),
    "ctr_x1_afn_plus": _X1(
        model="afn_plus",
        model_options=("neurons=100", "deep_mlp=400-400-400", "deep_dropout=0.1"),
        top_mlp=(200, 1),
        dropout=0.4,
        normalization="batch",
    ),
    "ctr_x1_masknet": _X1(
        model="masknet",
        model_options=("mask_ratio=0.2", "vector_norm=false"),
        top_mlp=(400, 400, 400, 1),
        dropout=0.2,
    ),
    "ctr_x1_finalmlp": _X1(
        model="finalmlp",
        model_options=(
            "second_mlp=1000",
            "heads=200",
            "gate_mlp=800",
            "context_1=numeric.*",
            "context_2=C6",
            "second_dropout=0.3",
        ),
        top_mlp=(400, 400, 400, 1),
        dropout=0.2,
        normalization="batch",
    ),
    "ctr_x1_finalnet": _X1(
        model="finalnet",
        model_options=("activation=relu", "second_dropout=0"),
        top_mlp=(400, 400, 1),
        normalization="batch",
        loss="self_distillation",
    ),
}

# BARS has no results of these. FCN has the settings of the best result of its authors on the other
# split of Criteo, github.com/salmon1802/FCN; GDCN and Wukong those of FuxiCTR's templates. Those of
# RankMixer, whose tokens have three fields each, and SSR are of this project, and not tuned.
PRESETS |= {
    "ctr_x1_fcn": _X1(
        model="fcn",
        model_options=("exponential_layers=4", "linear_layers=5", "linear_dropout=0.2"),
        loss="tri_bce",
    ),
    "ctr_x1_gdcn": _X1(
        model="gdcn",
        model_options=("layers=3",),
        top_mlp=(1024, 512, 256, 1),
        dropout=0.0,
    ),
    "ctr_x1_wukong": _X1(
        model="wukong",
        model_options=("layers=3", "fmb=40", "lcb=40", "rank=8", "fmb_mlp=512-256"),
        top_mlp=(512, 256, 1),
        dropout=0.0,
        normalization="batch",
    ),
    "ctr_x1_rankmixer": _X1(
        model="rankmixer",
        model_options=("layers=2", "tokens=13", "token_width=208"),
    ),
    "ctr_x1_ssr": _X1(
        model="ssr",
        model_options=("layers=2", "views=8", "view_width=64"),
    ),
}


def preset(name: str) -> Config:
    """Looks up a configuration by its name.

    Raises:
        UserError: there is no such preset; the message lists all names.
    """
    if name not in PRESETS:
        raise UserError(f"--preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
