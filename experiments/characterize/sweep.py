"""Measures steps that differ in one property, each in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dlrm_jax.config import Config
from dlrm_jax.errors import UserError


def _width(config: Config, value: str) -> list[str]:
    flags = [f"--embedding_dim={value}"]
    if config.model == "dlrm":  # which needs equal widths
        flags.append(f"--bottom_mlp={','.join([*map(str, config.bottom_mlp[:-1]), value])}")
    return flags


def _rows(config: Config, value: str) -> list[str]:
    try:
        rows = [str(max(1, round(float(value) * each))) for each in config.table_rows]
    except (ValueError, OverflowError):
        raise UserError(f"--sweep: rows: expected factors such as 0.1, got {value!r}") from None
    return [f"--table_rows={','.join(rows)}"]


# By property: the flags that set its value, and the default values.
_SWEEPS: dict[
    str, tuple[Callable[[Config, str], list[str]], Callable[[Config], Sequence[object]]]
] = {
    "batch_size": (
        lambda config, value: [f"--batch_size={value}"],
        lambda config: [config.batch_size // 4, config.batch_size, config.batch_size * 4],
    ),
    "width": (_width, lambda config: [config.embedding_dim * n // 2 for n in (1, 2, 4)]),
    "bag_length": (lambda config, value: [f"--bag_lengths={value}"], lambda config: [1, 4, 16]),
    "rows": (_rows, lambda config: [0.01, 0.1, 1]),
    "mesh": (lambda config, value: [f"--mesh={value}"], lambda config: ["1x1", "1x2", "2x2"]),
}
NAMES = tuple(_SWEEPS)


def parse(text: Sequence[str], config: Config) -> dict[str, list[str]]:
    """Reads ``("batch_size=512:2048", "mesh")`` as values by property.

    Default values lie around those of the config.

    Raises:
        UserError: an item has another form.
    """
    sweeps = {}
    for item in text:
        name, given, values = item.partition("=")
        if name not in _SWEEPS or (given and not all(values.split(":"))):
            raise UserError(
                f"--sweep: expected some of {', '.join(NAMES)}, each with its values or without, "
                f"such as batch_size=512:2048,mesh; got {item!r}"
            )
        if name in sweeps:
            raise UserError(f"--sweep: {name} is listed twice")
        make, usual = _SWEEPS[name]
        sweeps[name] = values.split(":") if given else [*map(str, usual(config))]
        for value in sweeps[name]:
            make(config, value)  # checked before anything is measured
    return sweeps


def run(
    what: str,
    values: Sequence[str],
    config: Config,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    workdir: Path,
) -> dict[str, Any]:
    """Measures a step for each value, and returns the results by value.

    Each leaves its files in ``WORKDIR/WHAT=VALUE``.

    Raises:
        UserError: a step couldn't be measured; the message has its error.
    """
    results = {}
    for value in tqdm(values, desc=what, unit=" steps", disable=None):
        directory = workdir / f"{what}={value}"
        command = [
            sys.executable, "-m", "experiments.characterize", *arguments,
            *_SWEEPS[what][0](config, value), f"--workdir={directory}",
        ]  # fmt: skip
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(
                f"--sweep: {what}={value}: {done.stderr.strip().removeprefix('error: ')}"
            )
        results[value] = json.loads((directory / "characterization.json").read_text())
    return results
