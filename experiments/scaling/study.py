"""The cells of a model: its learning rate is chosen, then all sizes are trained with all seeds."""

from __future__ import annotations

from pathlib import Path

import tqdm
from jax.sharding import Mesh

from experiments.scaling import ranking, sequences
from experiments.scaling.cell import Cell, Measured, measured
from experiments.scaling.findings import Finding
from experiments.scaling.sizes import LADDER, Size, is_of_sequences, middle_of, sizes_of

_RATES, _RATES_OF_SEQUENCES = (0.003, 0.01, 0.03), (0.001, 0.003, 0.01)


def rates_of(model: str) -> tuple[float, ...]:
    """The peaks of the learning rate that are tried for a model's middle size."""
    return _RATES_OF_SEQUENCES if is_of_sequences(model) else _RATES


def find(model: str, samples: int, seeds: int, quick: bool, mesh: Mesh, directory: Path) -> Finding:
    """The results of a model, from files where there are some.

    Args:
        model: name of the model.
        samples: training examples or users, see `Cell`.
        seeds: number of trainings of each size.
        quick: whether the two smallest sizes of the ladder are trained alone.
        mesh: mesh of one device.
        directory: directory of the files.

    Raises:
        UserError: a model diverges, or a file is damaged.
    """
    rates = rates_of(model)
    train = sequences.run if is_of_sequences(model) else ranking.run
    along = sizes_of(model)
    if quick:
        along = {LADDER: along[LADDER][:2]}
    sizes = list(dict.fromkeys(size for each in along.values() for size in each))
    with tqdm.tqdm(total=len(rates) + len(sizes) * seeds, unit="cell") as bar:

        def result(size: Size, rate: float, seed: int) -> Measured:
            bar.set_description(f"{model} {size.width} x {size.layers}, seed {seed}")
            cell = Cell(model, size, rate, seed, samples)
            found = measured(cell, lambda cell: train(cell, mesh), directory)
            bar.update()
            return found

        searched = {rate: result(middle_of(model), rate, 0).validation for rate in rates}
        rate = min(searched, key=lambda each: searched[each])
        results = {size: [result(size, rate, seed) for seed in range(seeds)] for size in sizes}
    return Finding(model, rate, along, results)
