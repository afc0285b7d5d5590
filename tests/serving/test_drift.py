"""The population stability index, its window, and the split that an artifact compares with."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from dlrm_jax.artifact.manifest import MANIFEST, Manifest
from dlrm_jax.artifact.signed_text import signed_text
from dlrm_jax.data.directory import load_directory
from dlrm_jax.inference.predictor import Predictor
from dlrm_jax.serving.counted_histogram import CountedHistogram
from dlrm_jax.serving.drift import SCORE_EDGES, SlidingCounts, counts_of, stability_index

PREVIOUS = Path(__file__).parents[1] / "previous"


def test_stability_index_is_the_formula():
    expected, found = np.array([99, 300, 599, 0]), np.array([10, 20, 68, 0])
    p = [(x + 0.5) / 1000 for x in expected.tolist()]
    q = [(x + 0.5) / 100 for x in found.tolist()]
    by_hand = sum((b - a) * np.log(b / a) for a, b in zip(p, q, strict=True))
    assert stability_index(expected, found) == pytest.approx(by_hand)
    assert stability_index(expected, expected) == 0
    assert stability_index(expected, expected[::-1]) > 0.25


def test_without_drift_it_is_what_chance_gives():
    random = np.random.default_rng(0)
    logits = [random.normal(-3, 1, n) for n in (50_000, 20_000)]
    found = stability_index(*(counts_of(1 / (1 + np.exp(-x))) for x in logits))
    bins = sum(counts_of(1 / (1 + np.exp(-logits[0]))) > 5)
    assert 0 < found < 3 * (bins - 1) * (1 / 50_000 + 1 / 20_000)
    moved = stability_index(*(counts_of(1 / (1 + np.exp(-x))) for x in (logits[0], logits[1] + 1)))
    assert moved > 0.25


def test_a_window_forgets_the_oldest_rows():
    window = SlidingCounts(100, 2)
    for number in range(60):
        window.add(np.array([7, 0]) if number < 30 else np.array([0, 7]))
        assert window.rows == min(7 * (number + 1), window.rows)
        assert window.rows <= 100 + 5 + 2 * 7
    assert window.rows >= 100
    assert window.counts.tolist() == [0, window.rows]
    window.add(np.array([1000, 0]))
    window.add(np.array([1, 0]))
    assert window.counts.tolist() == [1001, 0]


def test_counted_histograms_are_those_of_the_library():
    texts = []
    values = np.array([0.1, 0.2, 0.5, 0.9, 1.0])
    for counted in (True, False):
        registry = CollectorRegistry()
        if counted:
            histogram = CountedHistogram("x", "A sentence.", (0.2, 0.5), "version", "label")
            registry.register(histogram)
            for part in (values[:2], values[2:]):
                histogram.add(["1", "a"], part)
            histogram.add(["2", "a"], values)
            histogram.remove_by_labels({"version": "2"})
        else:
            names = ["version", "label"]
            of_library = Histogram("x", "A sentence.", names, registry=registry, buckets=(0.2, 0.5))
            for value in values:
                of_library.labels("1", "a").observe(value)
        lines = generate_latest(registry).decode().splitlines()
        texts.append([x for x in lines if "_created" not in x])
    assert texts[0] == texts[1]


def test_an_artifact_notes_what_the_tested_split_is_like(artifact: Path):
    baseline = Manifest.read(artifact).baseline
    assert baseline is not None
    assert (baseline.split, baseline.edges) == ("test", SCORE_EDGES)
    split = load_directory(PREVIOUS / "data").test
    probabilities = np.concatenate([*Predictor.load(artifact, batch_size=16).probabilities(split)])
    assert baseline.scores == {"label": tuple(counts_of(probabilities).tolist())}
    ids = np.concatenate([np.asarray(day.ids) for day in split.days])
    shares = (ids == 0).sum(0) / (ids != 1).sum(0)
    assert list(baseline.unseen.values()) == pytest.approx(shares.tolist())
    assert list(baseline.unseen) == ["page", "city", "word"]


def test_artifacts_of_earlier_versions_have_none(artifact: Path, tmp_path: Path):
    content = json.loads((artifact / MANIFEST).read_text())
    del content["baseline"], content["checksum"]
    (tmp_path / MANIFEST).write_text(signed_text(content))
    assert Manifest.read(tmp_path).baseline is None


def test_threads_count_together():
    """As those of two models do, while one takes the place of another of its version."""
    histogram, turns = CountedHistogram("x", "A sentence.", (0.5,), "version"), 200

    def count() -> None:
        for _ in range(turns):
            histogram.add(["1"], np.array([0.25, 0.75]))

    threads = [threading.Thread(target=count) for _ in range(3)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    (family,) = histogram.collect()
    assert [x.value for x in family.samples] == [3 * turns, 6 * turns, 6 * turns, 3 * turns]
