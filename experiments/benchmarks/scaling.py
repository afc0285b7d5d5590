"""Draws the time of a simulated step over the number of devices, for each placement.

    python -m experiments.benchmarks.scaling --preset=mlperf_v2 --device=h100 --output=scaling.png

Weak scaling keeps the samples of a device, strong scaling those of a batch. All tables of a curve
have its placement, on a mesh DxM whose groups are hosts, or on one group of all devices, 1xN.
"""

from __future__ import annotations

import dataclasses

from absl import flags

from dlrm_jax.cli.flags import FLAGS, require
from dlrm_jax.cli.output_files import check_pictures, check_writable
from dlrm_jax.cli.pictures import save
from dlrm_jax.cli.run import run
from dlrm_jax.embedding.planning.devices import DEVICES, device
from dlrm_jax.presets import PRESETS, preset
from dlrm_jax.text_table import text_table
from experiments.benchmarks.scaling_curves import CURVES, DEVICE_COUNTS, draw, step_ms

flags.DEFINE_enum("preset", "mlperf_v2", list(PRESETS), "Configuration of the model and tables.")
flags.DEFINE_enum("device", "h100", list(DEVICES), "Device that the mesh consists of.")
flags.DEFINE_integer("samples", 512, "Samples of a device, for weak scaling; such as 2048.", 1)
flags.DEFINE_string("output", "scaling.png", "File to draw in: .png or .svg; such as scaling.svg.")


def main() -> None:
    """Simulates, prints tables, draws."""
    require("output")
    check_pictures("output")
    check_writable("output")
    config, kind = preset(FLAGS.preset), device(FLAGS.device)
    drawn = []
    for name in ("weak", "strong"):
        batches = [
            FLAGS.samples * n if name == "weak" else config.batch_size for n in DEVICE_COUNTS
        ]
        found = [
            [
                step_ms(curve, dataclasses.replace(config, batch_size=batch), devices, kind)
                for devices, batch in zip(DEVICE_COUNTS, batches, strict=True)
            ]
            for curve in CURVES
        ]
        drawn.append(found)
        rows = [
            [curve.name, *("" if x is None else f"{x:.2f}" for x in times)]
            for curve, times in zip(CURVES, found, strict=True)
            if any(times)
        ]
        each = f"{FLAGS.samples} a device" if name == "weak" else f"{config.batch_size:,} in all"
        header = [f"ms, {each}", *(f"{n:,}" for n in DEVICE_COUNTS)]
        print(f"{text_table(header, rows)}\n")
    for curve, times in zip(CURVES, drawn[0], strict=True):
        if not any(times):
            print(f"{curve.name}: left out; no number of devices splits the tables so")
    save(draw(*drawn), FLAGS.output)


if __name__ == "__main__":
    run(main)
