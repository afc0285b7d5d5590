"""Simulated steps of published runs."""

from __future__ import annotations

import pytest

from dlrm_jax.embedding.planning.data_sheets import GPU
from experiments.benchmarks.published_runs import RUNS, Run, fitted, planned, simulated_ms

MLPERF = [run for run in RUNS if run.model == "mlperf_v2"]


@pytest.mark.parametrize("published", [MLPERF[3], MLPERF[5]], ids=lambda run: run.device)
def test_simulated_steps_are_near_the_published_ones(published: Run):
    assert simulated_ms(published, GPU) == pytest.approx(published.step_ms, rel=0.2)
    *_, plan = planned(published)
    assert plan.shards == published.per_host


def test_constants_are_fitted_on_fewer_runs_than_check_them():
    assert 2 < sum(run.is_fitted for run in RUNS) < sum(not run.is_fitted for run in MLPERF)


def test_a_fit_finds_the_constants_that_made_the_times():
    wanted = GPU._replace(products=0.5, launch=6e-6)

    def simulated(published: Run, share) -> float:
        work = {"a100": 3.0, "h100": 1.0, "b200": 0.4}[published.device] * published.per_host
        exact = work / wanted.products + 1e6 * wanted.launch * published.hosts
        return (
            published.step_ms
            * (work / share.products + 1e6 * share.launch * published.hosts)
            / exact
        )

    found = fitted(GPU, simulated)
    assert found.products == pytest.approx(wanted.products, rel=0.02)
    assert found.launch == pytest.approx(wanted.launch, rel=0.02)
