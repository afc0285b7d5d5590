"""Published settings of models of sequences on MovieLens, by name.

They are those of HSTU's reference implementation (meta-recsys' generative-recommenders,
``configs/ml-1m`` and ``configs/ml-20m``, which train on 128 negatives), of arXiv 2402.17152,
table 4. A batch's targets share their negatives here, and there each one draws its own. Of each
user's interactions the last but one is kept for validation here, and trained on there.
"""

from __future__ import annotations

import dataclasses

from dlrm_jax.sequential.settings import SequentialSettings

_ML1M = SequentialSettings(
    encoder="hstu", max_length=200, pieces=1, width=50, layers=2, heads=1, dropout=0.2,
    normalize=True, temperature=0.05, negatives=128, sampler="uniform", batch_size=128,
    learning_rate=0.001, beta2=0.98, epochs=101, patience=0, metric="ndcg@10",
    at=(1, 10, 50, 100, 200), exclude_seen=True,
)  # fmt: skip
_ML20M = dataclasses.replace(_ML1M, width=256, layers=4, heads=4)

PRESETS: dict[str, SequentialSettings] = {
    "hstu_ml1m": _ML1M,
    "hstu_large_ml1m": dataclasses.replace(_ML1M, layers=8, heads=2),
    "sasrec_ml1m": dataclasses.replace(_ML1M, encoder="sasrec"),
    "hstu_ml20m": _ML20M,
    "hstu_large_ml20m": dataclasses.replace(_ML20M, layers=16, heads=8),
    "sasrec_ml20m": dataclasses.replace(_ML20M, encoder="sasrec"),
}
"""Settings by the name that ``--preset`` takes."""
