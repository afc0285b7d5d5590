"""What is held out of prepared data, for people."""

from __future__ import annotations

from dlrm_jax.data.metadata import Metadata
from dlrm_jax.data.preprocessing.options import Options
from dlrm_jax.data.preprocessing.split_rule import PARTS
from dlrm_jax.data.preprocessing.splits import rows_of


def split_rule(metadata: Metadata) -> str:
    """The rule of the split, with its seed if it has one."""
    if metadata.made_from["options"].get("held_out"):
        return "files"
    options = Options.from_json(metadata.made_from["options"])
    rule = options.rule
    return f"{rule}, seed {options.seed}" if rule.is_random else str(rule)


def unseen_by_split(metadata: Metadata) -> str | None:
    """A warning if the split leaves no training row the values of a feature that it holds out."""
    options = Options.from_json(metadata.made_from["options"])
    column = options.rule.column if options.rule.kind == "user" else None
    # Data that grow, or another column, may know the values; ids of other programs don't say.
    known = metadata.grown_from or column in {*metadata.shared, *metadata.shared.values()}
    if column not in metadata.columns or known or options.compatible:
        return None
    return (
        f"warning: {column} is a categorical feature: no training row has the values that "
        f"--split={options.rule} holds out, so all of them have the id of unseen ones"
    )


def split_table(metadata: Metadata) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table: rows and share of each split, and its times if they are known."""
    all_rows = max(1, sum(metadata.days))
    header = ["split", "rows", "share"] + ["from", "to"] * bool(metadata.times)
    rows = []
    for name in PARTS:
        count = rows_of(metadata.splits, name)
        times = metadata.times.get(name, ["", ""]) if metadata.times else []
        rows.append([name, f"{count:,}", f"{100 * count / all_rows:.1f}%", *times])
    return header, rows
