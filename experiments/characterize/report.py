"""Reports measurements as JSON, as lines and as a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlrm_jax.cli.page import Page
from dlrm_jax.cli.pictures import percent
from dlrm_jax.training.record import versions
from experiments.characterize.drawing import draw_step, draw_sweep
from experiments.characterize.measure import Measured

Result = Mapping[str, Any]
"""The content of ``characterization.json`` for one step."""

HEADER = (
    "class", "ms", "share", "GFLOP", "MiB", "MiB of rows", "FLOPs/byte", "GFLOP/s", "limit, ms",
)  # fmt: skip


def as_result(description: Mapping[str, Any], measured: Measured) -> dict[str, Any]:
    """All measurements, in units for people."""
    classes = {}
    for name, seconds in sorted(measured.classes.items(), key=lambda item: -item[1]):
        classes[name] = {"ms": 1e3 * seconds, "share": seconds / measured.profiled}
        if cost := measured.costs.get(name):
            nbytes = cost.nbytes + cost.row_bytes
            classes[name] |= {
                "gflop": cost.flops / 1e9,
                "mib": cost.nbytes / 2**20,
                "row_mib": cost.row_bytes / 2**20,
                "flops_per_byte": cost.flops / nbytes if nbytes else 0.0,
                "gflops_per_second": cost.flops / seconds / 1e9,
                "limit_ms": 1e3 * measured.limit(name),
            }
    return {
        **description,
        "kernels": measured.kernels,
        "step_ms": 1e3 * measured.step,
        "profiled_ms": 1e3 * measured.profiled,
        "profiled_over_step": measured.profiled / measured.step,
        "machine": {
            "gflops": measured.machine.flops / 1e9,
            "stream_gib_per_second": measured.stream_bytes / 2**30,
            "row_gib_per_second": measured.machine.row_bytes / 2**30,
        },
        "classes": classes,
        "versions": versions(),
    }


def rows(result: Result) -> tuple[list[list[str]], list[str]]:
    """The row of each class below `HEADER`, and that of totals."""
    body = []
    for name, entry in result["classes"].items():
        keys = ("gflop", "mib", "row_mib", "flops_per_byte", "gflops_per_second", "limit_ms")
        costs = [f"{entry[key]:.4g}" if entry.get(key) else "" for key in keys]
        body.append([name, f"{entry['ms']:.3f}", percent(entry["share"]), *costs])
    return body, ["profiled step", f"{result['profiled_ms']:.3f}", "100%", *[""] * 6]


def sentence(result: Result) -> str:
    """The change of the step's time by the profiler, as a sentence."""
    return (
        f"{result['profiled_ms']:.3f} ms profiled over {result['step_ms']:.3f} ms without the "
        f"profiler: {result['profiled_over_step']:.3f}"
    )


def sweep_table(what: str, results: Mapping[str, Result]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a sweep: milliseconds of each class, with a column a step."""
    names = list(dict.fromkeys(name for each in results.values() for name in each["classes"]))
    body = []
    for name in names:
        found = [each["classes"].get(name) for each in results.values()]
        body.append([name, *(f"{each['ms']:.3f}" if each else "" for each in found)])
    for name, key in (("profiled step", "profiled_ms"), ("step", "step_ms")):
        body.append([name, *(f"{each[key]:.3f}" for each in results.values())])
    return [f"ms, by {what}", *results], body


def write_page(path: Path, result: Result, sweeps: Mapping[str, Mapping[str, Result]]) -> None:
    """Writes a page with all results."""
    page = Page(f"One step of {result['preset']}, by class of operator")
    machine = result["machine"]
    page.text(
        f"Batch {result['batch_size']:,}, mesh {result['mesh']}, {result['device']}; "
        f"{result['rows']:,} rows of width {result['embedding_dim']}, {result['optimizer']}. "
        f"{sentence(result)}. The machine reaches {machine['gflops']:.4g} GFLOP/s in a large "
        f"matrix product, {machine['stream_gib_per_second']:.3g} GiB/s in sequence and "
        f"{machine['row_gib_per_second']:.3g} GiB/s in rows at random."
    )
    page.picture(draw_step(result), "time by class, and the classes under the machine's roofs")
    page.table(HEADER, *rows(result))
    page.text(
        "An instant belongs in equal parts to the classes that something runs of then. Operations "
        "and bytes are those of the compiled program on all devices; rows of tables are the "
        "different ones that a batch names, read once and, to be updated, read and written once. "
        "The limit is the longer of the times that operations and bytes take at the machine's "
        "speeds; what stays in caches may be faster. A collective counts from when the last "
        "device has come to it. What computes nothing, such as lookups of one id a bag, isn't "
        "among the points."
    )
    for what, results in sweeps.items():
        page.heading(f"By {what}")
        page.picture(draw_sweep(what, results), f"steps by class for each {what}")
        page.table(*sweep_table(what, results))
    page.write(path)
