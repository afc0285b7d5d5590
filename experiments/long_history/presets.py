"""Published shapes of models that rank by a long history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from dlrm_jax.requests.settings import RequestSettings


class Preset(NamedTuple):
    """Settings, and the sizes of generated requests.

    Attributes:
        settings: settings of the model.
        rows: number of rows of the tables of items and of countries.
        longest: number of actions of the longest history.
        shortest: share of it that the shortest one has.
        shown: number of candidates of a request.
    """

    settings: RequestSettings
    rows: Mapping[str, int]
    longest: int
    shortest: float
    shown: int


_DLRM_V3 = RequestSettings(
    encoder="hstu",
    max_length=2046,
    width=256,
    encoder_width=512,
    layers=3,
    heads=4,
    attention_width=128,
    linear_width=128,
    dropout=0.1,
    mlp=(512,),
    batch_size=16,
    learning_rate=0.001,
    epochs=1,
)

PRESETS: dict[str, Preset] = {
    "small": Preset(RequestSettings(), {"item": 400, "country": 4}, 1024, 0.5, 16),
    # MLPerf's HSTU for ranking: facebookresearch/generative-recommenders, dlrm_v3/configs.py
    # (`get_hstu_configs`, `get_embedding_table_config`) and modules/dlrm_hstu.py
    # (`max_seq_len` 2,056 with up to 10 candidates); sessions as in dlrm_v3/datasets/dataset.py.
    # Its tables are posts and viewers.
    "dlrm_v3": Preset(_DLRM_V3, {"item": 10_000_000, "country": 10_000_000}, 2046, 0.8, 10),
}
