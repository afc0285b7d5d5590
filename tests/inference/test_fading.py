"""Who still sees a faded feature, what the others get, and schedules that are refused."""

from __future__ import annotations

import datetime
import itertools
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.pipeline import preprocess
from dlrm_jax.data.preprocessing.schema import Schema
from dlrm_jax.data.preprocessing.serving import LogEncoder
from dlrm_jax.errors import UserError
from dlrm_jax.inference.fade_schedule import FadeSchedule
from dlrm_jax.inference.fading import Fading, covered, draws, request_hashes
from dlrm_jax.inference.scorer import Inputs

SCHEMA = Schema(
    "click", ("shop", "viewed", "age"), ("price", "size"), {"viewed": 3}, bins={"age": 4},
    dense_transform={"price": "standardize", "size": "log"},
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> LogEncoder:
    directory = tmp_path_factory.mktemp("faded")
    log = pl.DataFrame(
        {
            "click": [0, 1] * 50,
            "shop": ["a", "b", "c", None] * 25,
            "viewed": [["x"], ["x", "y"], [], ["z", "x", "y"]] * 25,
            "age": [1.0, 20.0, 33.0, None] * 25,
            "price": [2.5, 5.0] * 50,
            "size": [1.0, 7.0, None, 2.0] * 25,
        }
    )
    log.write_parquet(directory / "log.parquet")
    preprocess([directory / "log.parquet"], directory / "arrays", Options(SCHEMA, min_count=1))
    arrays = directory / "arrays"
    return LogEncoder(arrays, Metadata.read(arrays).fingerprint)


def inputs_of(encoder: LogEncoder) -> Inputs:
    metadata = encoder.metadata
    lengths = tuple(metadata.bag_lengths)
    return Inputs(2, tuple(metadata.columns), tuple(metadata.table_rows), lengths, ())


def test_who_loses_a_feature_does_not_get_it_back():
    hashes = request_hashes((f"request {i}" for i in range(20_000)), "salt")
    shares = [0.0, 0.1, 0.3, 0.5, 0.9, 1.0]
    seen = [covered(hashes, {"shop": share})["shop"] for share in shares]
    for fewer, more in itertools.pairwise(seen):
        assert not (fewer & ~more).any()
    np.testing.assert_allclose([x.mean() for x in seen], shares, atol=0.012)
    assert (seen[0].any(), seen[-1].all()) == (False, True)


def test_draws_are_kept_and_independent():
    ids = [f"request {i}" for i in range(20_000)]
    hashes = request_hashes(ids, "")
    shop, price = draws(hashes, "shop"), draws(hashes, "price")
    assert abs(np.corrcoef(shop, price)[0, 1]) < 0.03
    assert abs(np.corrcoef(shop, draws(request_hashes(ids, "other"), "shop"))[0, 1]) < 0.03
    counts, _ = np.histogram(shop, 20, (0, 1))
    np.testing.assert_allclose(counts, 1000, atol=150)
    # Servers of other versions must draw the same.
    found = draws(request_hashes(["7", "ä"], "s"), "shop")
    assert found.tolist() == [0.4537865491160553, 0.13669146912543628]


def test_faded_features_are_what_missing_values_are(encoder: LogEncoder):
    """Each feature alone, and all of them, equal the rows whose values are null."""
    names = ["price", "size", "shop", "viewed", "age"]
    rows = pl.DataFrame(
        {
            "shop": ["a", "b", "new"],
            "viewed": [["x", "y"], ["z"], ["y", "new"]],
            "age": [1.0, 30.0, 90.0],
            "price": [2.0, 3.0, 9.0],
            "size": [4.0, 5.0, 6.0],
        }
    )
    given = encoder.rows(rows, "rows")
    before = given.dense.copy(), np.array(given.ids)
    fading = Fading(encoder, inputs_of(encoder))
    assert fading.features == names
    seen = np.array([True, False, True])
    for faded in (*([x] for x in names), names, []):
        nulls = [pl.when(pl.Series(seen)).then(pl.col(x)).alias(x) for x in faded]
        expected = encoder.rows(rows.with_columns(nulls), "rows")
        found = fading.apply(given, dict.fromkeys(faded, seen))
        np.testing.assert_array_equal(found.dense, expected.dense)
        np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(given.dense, before[0])
    np.testing.assert_array_equal(given.ids, before[1])


def seconds(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()


def test_coverage_over_time(tmp_path: Path):
    path = tmp_path / "fade.json"
    path.write_text(
        '{"features": {"shop": [["2026-11-01T00:00:00Z", 1], ["2026-11-11T01:00:00+01:00", 0.5],'
        '["2026-11-12T00:00:00Z", 0]], "price": [["2026-11-03T00:00:00Z", 0.25]]}, "salt": "s"}'
    )
    schedule = FadeSchedule.read(path)
    assert schedule.salt == "s"
    assert schedule.instants == [seconds(f"2026-11-{x}T00:00Z") for x in ("01", "03", "11", "12")]
    for day, shop in (("2025-01-01", 1), ("2026-11-06", 0.75), ("2026-11-11", 0.5),
                      ("2026-11-12", 0), ("2027-01-01", 0)):  # fmt: skip
        found = schedule.coverages(seconds(f"{day}T00:00Z"))
        assert found == {"shop": pytest.approx(shop), "price": 0.25}
    schedule.check_features(["price", "shop"])
    with pytest.raises(UserError, match="expected features of the model, size, shop, got 'price'"):
        schedule.check_features(["size", "shop"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "expected JSON such as"),
        ('{"features": {}}', "features: expected at least one, got none"),
        ('{"features": {"shop": [], "shop": []}}', "'shop' is there twice"),
        ('{"features": {"shop": [["2026-11-01T00:00:00Z", NaN]]}}', "feature 'shop', point 0"),
        ('{"features": {"shop": 0.5}}', "Expected `array`, got `float`"),
        ('{"features": {"shop": []}}', "feature 'shop': expected at least one point, got none"),
        ('{"features": {"x": []}, "sault": ""}', "unknown field `sault`"),
        ('{"features": {"shop": [["2026-11-01T00:00:00", 1]]}}',
         r"feature 'shop', point 0 \(from 0\): .*zone.*got \[\"2026-11-01T00:00:00\",1\]"),
        ('{"features": {"shop": [["2026-11-01T00:00:00Z", 1.5]]}}', r"got .*1\.5\].*<= 1\.0"),
        ('{"features": {"shop": [["2026-11-01T00:00:00Z"]]}}', "feature 'shop', point 0"),
        ('{"features": {"shop": [["2026-11-02T00:00:00Z", 1], ["2026-11-01T00:00:00Z", 0]]}}',
         r"feature 'shop', point 1 \(from 0\): expected a later time"),
        ('{"features": {"shop": [["2026-11-01T00:00:00Z", 1]]}, "salt": "\\ud800"}', "surrogates"),
        ('{"features": {"shop": ["\\ud800"]}}', "surrogates"),
        ('{"features": {"shop": [["2026-11-01T00:00:00Z", 1%s]]}}' % ("0" * 40), "point 0"),
        ('{"features": {"shop": [["0001-01-01T00:00:00+14:00", 1]]}}', "point 0 .*out of range"),
    ],
)  # fmt: skip
def test_what_is_no_schedule(content: str, message: str, tmp_path: Path):
    path = tmp_path / "fade.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        FadeSchedule.read(path)
    assert re.match(r"fade: .*fade\.json: ", str(error.value))
    assert "\n" not in str(error.value)
