"""What is read of a compiled program, as tables and notes for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dlrm_jax.text_table import text_table

_SHOWN = 3


def program_text(found: Mapping[str, Any]) -> str:
    """Tables of kernels, scatters, products and temporaries, and a note on each that is amiss.

    Args:
        found: a report of `dlrm_jax.programs.report`.
    """
    parts = [
        _kernels(found["kernels"]),
        _scatters(found["scatters"]),
        _products(found["products"]),
        _overlaps(found["overlaps"]),
        _cycles(found["cycles"]),
        _temporaries(found["largest_temporaries"]),
        "\n".join(f"note: {note}" for note in notes(found)),
    ]
    return "\n\n".join(part for part in parts if part)


def notes(found: Mapping[str, Any]) -> list[str]:
    """Sentences on what a train step shouldn't have."""
    result = []
    repeated = [x for x in found["scatters"] if x["may_repeat"]]
    if repeated and found["platform"] == "gpu":
        result.append(
            f"{sum(x['number'] for x in repeated)} scatters of floats may have a place twice, and "
            f"GPUs add these in another order each time"
        )
    for product in found["products"]:
        if product["loses"]:
            result.append(
                f"{product['number']} products of {product['asked']} are computed in "
                f"{product['computed']}: {_some(product['operations'])}"
            )
    for name, what in (
        ("copies_of_tables", "tables are copied"),
        ("as_large_as_a_table", "temporaries are as large as a table"),
    ):
        if found[name]:
            each = [f"{x['array']} of {x['operation'] or x['kind']}" for x in found[name]]
            result.append(f"{len(each)} {what}: {_some(each)}")
    if found["not_updated_in_place"]:
        result.append(f"not updated in place: {_some(found['not_updated_in_place'])}")
    return result


def _kernels(found: Mapping[str, Any]) -> str:
    once, in_loops = found["once"], found["in_loops"]
    rows = [
        (kind, f"{once.get(kind, 0):,}", f"{in_loops.get(kind, 0):,}")
        for kind in sorted(once | in_loops)
    ]
    rows.append(("all", f"{sum(once.values()):,}", f"{sum(in_loops.values()):,}"))
    header = ("kernels", "of a step", f"of a turn of its {found['loops']} loops")
    return text_table(header, rows)


def _scatters(found: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        (x["dtype"], x["combines"], _yes(x["unique"]), _yes(x["is_sorted"]), _yes(x["seldom"]),
         str(x["number"]))
        for x in found
    ]  # fmt: skip
    header = ("scatters of", "by", "unique", "sorted", "seldom run", "number")
    return text_table(header, rows, left=(0, 1, 2, 3, 4)) if rows else ""


def _products(found: Iterable[Mapping[str, Any]]) -> str:
    rows = [(x["asked"], x["computed"], str(x["number"])) for x in found]
    return text_table(("products of", "computed in", "number"), rows, left=(0, 1)) if rows else ""


def _cycles(found: Mapping[str, Any] | None) -> str:
    if not found:
        return ""
    rows = [
        ("kernels of a step", f"{found['once'] / 1e6:.3f}", ""),
        ("one turn of each loop", f"{found['in_loops'] / 1e6:.3f}", ""),
        *((x["arrays"], f"{x['cycles'] / 1e6:.3f}", x["operation"]) for x in found["most"]),
    ]
    header = ("cycles, as the compiler counts some", "millions", "of")
    return text_table(header, rows, left=(0, 2))


def _overlaps(found: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        (x["kind"], f"{x['nbytes'] / 2**20:.3f}", _yes(x["asynchronous"]), f"{x['kernels']:,}",
         x["operation"] or "several operations, combined")
        for x in found
    ]  # fmt: skip
    header = ("collective", "MiB", "asynchronous", "kernels meanwhile", "of")
    return text_table(header, rows, left=(0, 2, 4)) if rows else ""


def _temporaries(found: Iterable[Mapping[str, Any]]) -> str:
    rows = [(x["array"], f"{x['bytes'] / 2**20:.3f}", x["operation"] or x["kind"]) for x in found]
    return text_table(("largest temporaries", "MiB", "of"), rows, left=(0, 2)) if rows else ""


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _some(names: Iterable[str]) -> str:
    """The first few of some names, and how many others there are."""
    names = list(names)
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
