"""MLPerf's LoadGen, which asks a system by its rules and measures the latencies.

Its scenario *Offline* asks for all samples at once. *Server* asks for one at a time, at the times
of a Poisson process, and counts latencies from the times that were drawn.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

_SWITCH_SECONDS = 1e-4  # LoadGen's thread would wait for Python's lock for 5 ms


class Asked(NamedTuple):
    """A sample that is asked for: the number for the answer, and the number of the sample."""

    query: int
    sample: int


class LoadGenerator:
    """LoadGen with a system that it asks.

    Args:
        issue: function that takes samples that are asked for and returns at once, or when they are
            answered; see `answer`.
        samples: number of different samples.
        site_packages: directory of an environment that has LoadGen, if that isn't this one.
    """

    def __init__(
        self,
        issue: Callable[[Sequence[Asked]], None],
        samples: int,
        site_packages: Path | None = None,
    ):
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._lg = _loadgen(site_packages)
        self._system = self._lg.ConstructSUT(
            lambda queries: issue([Asked(x.id, x.index) for x in queries]), lambda: None
        )
        self._library = self._lg.ConstructQSL(samples, samples, lambda _: None, lambda _: None)

    def answer(self, queries: Sequence[int]) -> None:
        """Tells that samples are answered."""
        self._lg.QuerySamplesComplete([self._lg.QuerySampleResponse(x, 0, 0) for x in queries])

    def run(
        self, scenario: Literal["offline", "server"], rate: float, seconds: float
    ) -> dict[str, Any]:
        """Asks for some seconds.

        Args:
            scenario: scenario.
            rate: samples a second; of *Offline*, those that are expected.
            seconds: least duration.

        Returns:
            ``rate``, completed samples a second, and ``p50_ms`` and ``p99_ms``.
        """
        lg = self._lg
        settings = lg.TestSettings()
        settings.mode = lg.TestMode.PerformanceOnly
        settings.min_duration_ms = int(1000 * seconds)
        settings.min_query_count = 1
        if scenario == "offline":
            settings.scenario = lg.TestScenario.Offline
            settings.offline_expected_qps = max(rate, 1)
        else:
            settings.scenario = lg.TestScenario.Server
            settings.server_target_qps = max(rate, 1)
            settings.server_target_latency_ns = 10**10  # it judges nothing here
        with tempfile.TemporaryDirectory() as directory:
            log = lg.LogSettings()
            log.enable_trace = False
            log.log_output.outdir = directory
            log.log_output.copy_summary_to_stdout = False
            lg.StartTestWithLogSettings(self._system, self._library, settings, log)
            text = (Path(directory) / "mlperf_log_detail.txt").read_text()
        found = _results(text)
        offline = scenario == "offline"
        return {
            "rate": found["samples_per_second" if offline else "completed_samples_per_sec"],
            "p50_ms": found["50.00_percentile_latency_ns"] / 1e6,
            "p99_ms": found["99.00_percentile_latency_ns"] / 1e6,
        }


def _results(log: str) -> dict[str, Any]:
    """The results in LoadGen's log, lines of JSON."""
    found = {}
    for line in log.splitlines():
        entry = json.loads(line.removeprefix(":::MLLOG "))
        if entry["key"].startswith("result_"):
            found[entry["key"].removeprefix("result_")] = entry["value"]
    return found


def _loadgen(site_packages: Path | None) -> Any:
    """The module, of another environment without the packages there."""
    name = "mlperf_loadgen"
    if site_packages is None:
        return importlib.import_module(name)
    (path,) = site_packages.glob(f"{name}.*.so")
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
