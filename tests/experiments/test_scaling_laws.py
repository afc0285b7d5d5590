"""Laws, planted products, counts of operations, and the program as a whole."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from main_job import run

from dlrm_jax.cli.pictures import save
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.sequential.batches import SequenceTraining
from dlrm_jax.sequential.model import learner_for
from dlrm_jax.sequential.step import make_sequential_step
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.config_data import train_batches
from dlrm_jax.training.step import make_train_step
from experiments.benchmarks.roofline import matrix_flops
from experiments.scaling import ranking, sequences
from experiments.scaling.cell import Cell, Measured, measured
from experiments.scaling.findings import LAW_HEADER, Finding, law_row
from experiments.scaling.picture import draw
from experiments.scaling.planted_products import generate, planted_products
from experiments.scaling.power_law import PowerLaw, fit, line
from experiments.scaling.sizes import LADDER, MODELS, Size, is_of_sequences, sizes_of

PROGRAM = ("-m", "experiments.scaling")
FLOPS = np.geomspace(5e3, 5e5, 5)


@pytest.mark.parametrize("law", [PowerLaw(3.0, 0.4, 0.02), PowerLaw(0.5, 0.2, 0.0)])
def test_a_fit_finds_the_law_of_exact_points(law: PowerLaw):
    found = fit(FLOPS, law(FLOPS))
    np.testing.assert_allclose(found, law, rtol=1e-4, atol=1e-6)
    if not law.floor:
        np.testing.assert_allclose(line(FLOPS, law(FLOPS)), law, rtol=1e-9)


def test_what_does_not_fall_has_no_exponent_or_a_floor():
    flat = fit(FLOPS, np.full(5, 0.1))
    np.testing.assert_allclose(flat(FLOPS), 0.1, rtol=1e-4)
    ended = fit(FLOPS, np.array([0.1, 0.07, 0.06, 0.06, 0.06]))
    assert 0.05 < ended.floor <= 0.06


def test_three_sizes_have_no_floor():
    x, y = FLOPS[:3], PowerLaw(3.0, 0.4, 0.02)(FLOPS[:3])
    assert fit(x, y) == line(x, y)


def test_planted_logits_are_sums_of_products_and_calibrated():
    planted = planted_products(3)
    drawn = generate(planted, 40_000, 3)
    for ids, logit in zip(drawn.ids[:20], drawn.logits[:20], strict=True):
        total = 0.0
        for each in planted.products:
            term = 1.0
            for field, effects in zip(each.fields, each.effects, strict=True):
                term *= effects[ids[field]]
            total += term
        assert logit == pytest.approx(planted.scale * total + planted.bias)
    assert np.mean(drawn.logits) == pytest.approx(0, abs=0.05)
    assert np.std(drawn.logits) == pytest.approx(2.5, rel=0.02)
    probability = 1 / (1 + np.exp(-drawn.logits))
    for low in (0.0, 0.25, 0.5, 0.75):
        own = (probability >= low) & (probability < low + 0.25)
        assert drawn.labels[own].mean() == pytest.approx(probability[own].mean(), abs=0.02)


def test_sizes_grow_along_each_axis():
    for model in MODELS:
        for axis, sizes in sizes_of(model).items():
            assert len(set(sizes)) == len(sizes) >= 2
            grown = [x for x in ("width", "layers", "rows", "length") if x in axis]
            for name in grown if axis != LADDER else ():
                values = [getattr(size, name) for size in sizes]
                assert values == sorted(set(values))


@pytest.mark.parametrize(
    "model",
    [
        name if name == "dlrm" else pytest.param(name, marks=pytest.mark.thorough)
        for name in MODELS
        if not is_of_sequences(name)
    ],
)
def test_products_of_a_ranking_model_are_those_that_xla_compiles(model: str):
    mesh, cell = make_mesh("1x1"), Cell(model, Size(16, 2, 16), 0.01, 0, 1024)
    data = ranking.dataset(ranking.drawn_for(1024), 1024, cell.size)
    config = ranking.config_of(cell, kernels="jax")  # which XLA can count
    learner, batches = make_learner(config, mesh), train_batches(config, data)
    step, state, batch = make_train_step(learner), learner.init(0), learner.put(batches[0])
    compiled = step.lower(state, batch).compile()  # pyright: ignore[reportFunctionMemberAccess]
    products = matrix_flops(step, state, batch)
    assert products <= compiled.cost_analysis()["flops"] <= 1.4 * products


@pytest.mark.thorough
def test_a_unit_of_hstu_has_its_projections_and_the_pairs_that_attend():
    def per_token(layers: int) -> float:
        cell = Cell("hstu", Size(8, layers, length=16), 0.01, 0, 64)
        settings, (_, interactions, split) = sequences.settings_of(cell), sequences.sessions(64)
        batches = SequenceTraining(interactions, split.train, settings, 1)
        learner = learner_for(len(interactions.values), batches.shapes, settings, make_mesh("1x1"))
        step, state = make_sequential_step(learner, settings), learner.init(0)
        batch = learner.put(batches[0])
        shapes.append((np.asarray(batch.lengths).ravel(), batches.shapes.tokens))
        return sequences.token_flops(step, state, batch, settings)

    shapes: list[tuple[np.ndarray, int]] = []
    unit = per_token(2) - per_token(1)
    lengths, places = shapes[0]
    pairs = sum(len(range(i + 1)) for length in lengths for i in range(length))
    assert places > lengths.sum()  # filling isn't the model's
    # Forward, and by weights and by inputs backward: u, v, q, k and the output, 5 d² of a token.
    expected = 3 * (2 * 5 * 8**2 + 4 * 8 * pairs / lengths.sum())
    assert unit == pytest.approx(expected)


@pytest.mark.thorough
def test_the_program_trains_each_size_once_and_resumes(tmp_path: Path):
    flags = ("--quick", "--models=dlrm,hstu", "--examples=1024", "--users=64", "--seeds=1",
             f"--workdir={tmp_path}")  # fmt: skip
    first = run(*flags, program=PROGRAM)
    assert first.returncode == 0, first.stderr[-3000:]
    cells = sorted((tmp_path / "cells").iterdir())
    # Three rates of the middle size, two sizes.
    assert len(cells) == 2 * (3 + 2)
    cells[0].unlink()
    written = {path: path.stat().st_mtime_ns for path in cells[1:]}
    with (tmp_path / "cells.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["dlrm"] * 2 + ["hstu"] * 2
    assert all(float(row["flops"]) > 0 and float(row["test"]) > 0 for row in rows)
    again = run(*flags, program=PROGRAM)
    assert again.returncode == 0, again.stderr[-3000:]
    assert written == {path: path.stat().st_mtime_ns for path in cells[1:]}
    assert cells[0].exists()
    assert again.stdout == first.stdout
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    fewer = run(*flags[:1], "--models=dlrm", *flags[2:3], *flags[4:], program=PROGRAM)
    assert fewer.returncode == 0, fewer.stderr[-3000:]
    assert "replace those of another study, with 2 results of hstu; its cells" in fewer.stdout


def test_a_damaged_result_is_named(tmp_path: Path):
    cell = Cell("dlrm", Size(4, 1, 16), 0.01, 0, 1024)
    known = Measured(10, 2.0, 0.6, 0.2, 0.1, 1.0)
    assert measured(cell, lambda _: known, tmp_path) == known
    assert measured(cell, lambda _: pytest.fail("it is trained again"), tmp_path) == known
    (path,) = tmp_path.iterdir()
    whole = json.loads(path.read_text(encoding="utf-8"))
    for part, name, value in (
        ("measured", "test", "x"), ("measured", "test", None), ("measured", "test", math.nan),
        ("cell", "seed", 1), ("measured", "more", 1.0),
    ):  # fmt: skip
        damaged = {**whole, part: {**whole[part], name: value}}
        path.write_text(json.dumps(damaged), encoding="utf-8")
        with pytest.raises(UserError, match=f"cell {path}: expected the result of a training"):
            measured(cell, lambda _: known, tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=f"cell {path}: expected the result of a training"):
        measured(cell, lambda _: known, tmp_path)


def test_a_result_that_is_not_finite_is_not_kept(tmp_path: Path):
    cell = Cell("dlrm", Size(4, 1, 16), 0.01, 0, 1024)
    with pytest.raises(UserError, match="dlrm: expected finite results"):
        measured(cell, lambda _: Measured(10, 2.0, 0.6, math.nan, 0.1, 1.0), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_as_good_as_the_planted_cause_has_no_law(tmp_path: Path):
    sizes = sizes_of("dlrm")[LADDER][:3]

    def finding(excess: tuple[float, ...]) -> Finding:
        results = {
            size: [Measured(10, 1e3 * size.width, 0.6, x, x, 1.0)]
            for size, x in zip(sizes, excess, strict=True)
        }
        return Finding("dlrm", 0.01, {LADDER: sizes}, results)

    known, without = finding((0.3, 0.2, 0.1)), finding((0.3, 0.2, -0.001))
    assert known.law() is not None
    assert without.law() is None
    assert law_row(without)[3] == "none, as an excess isn't above 0"
    assert len(law_row(without)) == len(law_row(known)) == len(LAW_HEADER)
    (axes,) = draw([without]).axes
    (with_law,) = draw([known]).axes
    assert len(axes.lines) == len(with_law.lines) - 1
    save(draw([without]), str(tmp_path / "x.png"))
    assert (tmp_path / "x.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--models=dlrm,gpt",), "--models: expected some of dlrm, wukong, rankmixer, hstu"),
        (("--models=hstu,hstu",), "--models: expected each model once, got hstu,hstu"),
        (("--models=hstu", "--examples=5000"), "--examples has no effect without --models=dlrm,"),
        (("--models=dlrm", "--users=100"), "--users has no effect without --models=hstu"),
    ],
)
def test_what_cannot_be_studied_is_refused(flags, message, tmp_path: Path):
    result = run(*flags, f"--workdir={tmp_path}", program=PROGRAM)
    assert result.returncode == 2
    assert message in result.stderr
    assert not list(tmp_path.iterdir())
