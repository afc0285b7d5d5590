"""Tables are quantized as long as the loss of AUC is tolerated."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from dlrm_jax.serving.table_choice import choose_tables

COSTS = {"a": 0.001, "b": 0.01, "c": 0.0, "d": 0.003}


def auc_of(quantized: Collection[str]) -> float:
    return 0.8 - sum(COSTS[name] for name in quantized)


@pytest.mark.parametrize(
    ("max_loss", "quantized"),
    [(0.02, "abcd"), (0.0045, "acd"), (0.0015, "ac"), (0.0005, "c"), (-1, "")],
)
def test_the_tables_that_cost_most_are_put_back(max_loss: float, quantized: str):
    found = choose_tables([*COSTS], auc_of, max_loss)
    assert found.quantized == tuple(quantized)
    assert found.loss == pytest.approx(sum(COSTS[name] for name in quantized))
    assert found.loss_of_all == pytest.approx(0.014)
    expected = {} if quantized == "abcd" else COSTS
    assert found.gains == pytest.approx(expected)
