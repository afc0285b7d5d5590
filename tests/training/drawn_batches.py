"""Random batches for the problem of `setups`, and the same as the oracle takes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from setups import DENSE, FEATURES

from dlrm_jax.data.batches import Batch

SAMPLES = 32  # so that each of 4 micro-batches can be split over 8 devices

# The few rows that ids are drawn from, so that they repeat.
POOLS: dict[str, Sequence[int]] = {
    "word": range(7),
    "tag": (0, 1, 2, 5, 6),
    "item": (0, 1, 2, 3, 500, 1001, 1006, 1999, 2998, 2999),
    "past": (0, 2, 3, 4, 1001, 1002, 2997, 2999),
    "city": range(0, 23, 3),
    "page": (0, 7, 8, 1500, 2998, 2999),
    "site": range(11),
}


def make_batches(
    dtype: str, *, weighted: bool = True, count: int = 5, labels: int = 1
) -> list[Batch]:
    """Batches with full, short and empty bags, in which ids repeat.

    The label is a fixed rule: whether the item is at an even place of its pool. Further labels are
    whether it is at a place of another multiple. Of several, some are missing, and in the last
    batch all of one.
    """
    batches = _make_batches(dtype, weighted, count)
    if labels == 1:
        return batches
    rng, columns = np.random.default_rng(1), [f.max_ids for f in FEATURES]
    item = sum(columns[: [f.name for f in FEATURES].index("item")])
    several = []
    for number, batch in enumerate(batches):
        items = batch.ids[:, item]
        found = [np.isin(items, POOLS["item"][:: 2 + h]) for h in range(labels)]
        array = np.stack(found, axis=1).astype(dtype)
        missing = rng.random(array.shape) < 0.3
        missing[:, 0] &= ~missing[:, 1:].all(axis=1)
        missing[:, 1] |= number == count - 1
        missing[:, 0] &= number < count - 1
        array[missing] = np.nan
        several.append(batch._replace(labels=array))
    return several


def _make_batches(dtype: str, weighted: bool, count: int) -> list[Batch]:
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(count):
        bags = {f.name: _bags(rng, POOLS[f.name], f.max_ids) for f in FEATURES}
        bags["item"] = rng.choice(POOLS["item"], (SAMPLES, 1))
        ids = np.concatenate([bags[f.name] for f in FEATURES], axis=1).astype(np.int32)
        labels = np.isin(bags["item"][:, 0], POOLS["item"][::2])
        weights = rng.uniform(0.5, 1.5, SAMPLES)
        weights[[-1, 5]] = 0  # the last sample and one in the middle are padding, with ids
        id_weights = rng.uniform(0.2, 2, ids.shape)
        id_weights[4, -2:] = (0.7, -0.7)  # a mean whose weights sum to 0
        batches.append(
            Batch(
                dense=rng.normal(size=(SAMPLES, DENSE)).astype(dtype),
                ids=ids,
                labels=labels.astype(dtype),
                sample_weights=weights.astype(dtype),
                id_weights=id_weights.astype(dtype) if weighted else None,
            )
        )
    return batches


def _bags(rng: np.random.Generator, pool: Sequence[int], length: int) -> np.ndarray:
    bags = rng.choice(pool, (SAMPLES, length))
    bags[rng.random(bags.shape) < 0.3] = -1
    bags[0] = -1  # empty
    bags[1] = pool[1]  # one id, as often as there is room
    bags[2] = pool[2]
    bags[2, length // 2] = -1  # absent in the middle
    bags[4] = pool[3]
    return bags


def by_feature(columns: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of all features, side by side, as the oracle takes them."""
    ends = np.cumsum([f.max_ids for f in FEATURES])[:-1]
    return dict(zip([f.name for f in FEATURES], np.split(columns, ends, axis=1), strict=True))


def oracle_arguments(batch: Batch) -> dict:
    """The batch as the arguments of `Oracle.step` and `Oracle.gradients`."""
    return {
        "dense": batch.dense,
        "ids": by_feature(batch.ids),
        "labels": batch.labels,
        "id_weights": None if batch.id_weights is None else by_feature(batch.id_weights),
        "sample_weights": batch.sample_weights,
    }
