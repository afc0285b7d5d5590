"""The tables and lines that ``dlrm_jax plan`` prints."""

from __future__ import annotations

from collections.abc import Sequence

from dlrm_jax.embedding.collectives import Collective
from dlrm_jax.embedding.planning.balance import LINKS, NETWORK
from dlrm_jax.embedding.planning.devices import Device, LinkSeconds
from dlrm_jax.embedding.planning.limits import Limits
from dlrm_jax.embedding.planning.mesh_plan import STARTS, MeshPlan
from dlrm_jax.mesh import DATA, MODEL
from dlrm_jax.text_table import text_table

_GIB, _MIB = 2**30, 2**20
# A limit counts as reached where less than this part of it is left.
_NEAR = 0.02
# Meshes that are shown beside the fastest one.
_NEXT = 2


def meshes_table(found: Sequence[MeshPlan], dtype: str = "") -> str:
    """The fastest mesh, the next best ones, and the part of the time that separates them.

    Args:
        found: plans, the fastest first.
        dtype: words for headings of bytes that devices receive, such as `` (in float32)``.
    """
    alike: dict[tuple[float, ...], list[MeshPlan]] = {}
    for each in found:  # 1xN and Nx1 are one program if all tables are fully sharded
        key = each.total_seconds, each.received, each.balance.device_bytes
        alike.setdefault(tuple(float(f"{x:.6g}") for x in key), []).append(each)
    best, rows = found[0], []
    for each, *others in list(alike.values())[: 1 + _NEXT]:
        more = {part: each.seconds[part] - best.seconds[part] for part in best.seconds}
        part = max(more, key=lambda name: more[name])
        separated = "" if each is best else f"{1e3 * more[part]:+.3f} ms of {part}"
        rows.append((
            " = ".join([each.mesh, *(other.mesh for other in others)]),
            f"{each.balance.device_bytes / _GIB:.3f}", f"{each.received / _MIB:,.1f}",
            f"{1e3 * each.total_seconds:.3f}", separated,
        ))  # fmt: skip
    received = f"received MiB{dtype}"
    header = ("mesh", "GiB of tables and state", received, "ms", "most of the difference")
    return text_table(header, rows, left=(0, 4))


def shards_table(plan: MeshPlan, dtype: str = "") -> str:
    """Memory, reads and bytes of the fullest, the mean and the emptiest shard."""
    found = plan.balance
    state = found.needed - found.table_bytes
    rows = []
    for name, values, unit in (
        ("tables, MiB", found.table_bytes, _MIB),
        ("optimizer state, MiB", state, _MIB),
        ("padding, MiB", found.padding, _MIB),
        ("tables and state, MiB", found.needed, _MIB),
        ("distinct rows looked up", found.reads, 1),
    ):
        digits = 0 if unit == 1 else 1
        numbers = (values.max() / unit, values.mean() / unit, values.min() / unit)
        ratio = f"{numbers[0] / numbers[1]:.3f}" if numbers[1] and name[:3] != "pad" else ""
        rows.append([name, *(f"{number:,.{digits}f}" for number in numbers), ratio])
    most, over_mean = found.device_bytes / _MIB, found.device_bytes / found.needed.mean()
    rows.append(["with padding, MiB", f"{most:,.1f}", "", "", f"{over_mean:.3f}"])
    rows.append(["temporaries, MiB", f"{plan.temporaries / _MIB:,.1f}", "", "", ""])
    # Room for more rows than expected is no imbalance: it is the same between all devices.
    mean = sum(each.nbytes if each.has_room else each.needed for each in plan.collectives)
    ratio = f"{plan.received / mean:.3f}" if mean else ""
    received = f"{plan.received / _MIB:,.1f}"
    rows.append([f"received, MiB{dtype}", received, f"{mean / _MIB:,.1f}", "", ratio])
    return text_table(["on each device", "most", "mean", "least", "most/mean"], rows)


def collectives_table(moved: Sequence[Collective], dtype: str = "") -> str:
    """The collectives of a step; equal ones are summed."""
    sums: dict[str, tuple[float, float]] = {}
    for each in moved:
        purpose = each.purpose if each.kind != "all-reduce" else each.purpose.split(" of ")[0]
        name = f"{each.kind} over {' and '.join(each.axes)}: {purpose}"
        nbytes, needed = sums.get(name, (0, 0.0))
        sums[name] = nbytes + each.nbytes, needed + each.needed
    if any(each.kind == "all-to-all" for each in moved):
        sums["all-to-all in all"] = exchange_bytes(moved)
    rows = [
        [name, f"{nbytes / _MIB:,.1f}", f"{needed / _MIB:,.1f}",
         f"{nbytes / needed:.3f}" if needed else ""]
        for name, (nbytes, needed) in sums.items()
    ]  # fmt: skip
    return text_table([f"received by each device{dtype}", "MiB", "needed", "ratio"], rows)


def exchange_bytes(moved: Sequence[Collective]) -> tuple[float, float]:
    """Bytes of all all-to-alls, and those that are needed."""
    exchange = [each for each in moved if each.kind == "all-to-all"]
    return sum(each.nbytes for each in exchange), sum(each.needed for each in exchange)


def time_table(plan: MeshPlan, kind: Device, dtype: str = "") -> str:
    """The estimated time, by part."""
    starts = f"start of {plan.starts} collectives"
    parts = {starts if name == STARTS else name: x for name, x in plan.seconds.items()}
    rows = [
        (name, f"{1e3 * x:.3f}") for name, x in (*parts.items(), ("in all", plan.total_seconds))
    ]
    return text_table([f"estimated for {kind.name}{dtype}", "ms"], rows)


def binding(plan: MeshPlan, kind: Device, limits: Limits) -> str:
    """The reasons why a step isn't faster, or the plan isn't another one."""
    found, moved, parts = plan.balance, plan.collectives, plan.seconds
    part = max(parts, key=lambda name: parts[name])
    reasons = [f"{part}, {parts[part] / sum(parts.values()):.0%} of the estimated time"]
    if part in (LINKS, NETWORK):
        took = [_link_seconds(each, plan, kind) for each in moved]
        took = [each.network if part == NETWORK else each.host for each in took]
        largest = moved[took.index(max(took))]
        reasons.append(f"most of the bytes are {largest.purpose} in an {largest.kind}")
    padded, needed = exchange_bytes([each for each in moved if not each.has_room])
    of_rows = (found.needed + found.filling).mean()  # which all plans fill alike
    for name, value, limit in (
        (f"the memory of {limits.memory / _GIB:.3g} GiB", found.device_bytes, limits.memory),
        ("padding of the exchange", padded / needed if needed else 1.0, limits.exchange),
        ("distinct rows of the busiest device", found.reads.max() / found.reads.mean(),
         limits.reads),
        ("padding of tables", found.device_bytes / of_rows, limits.table_bytes),
    ):  # fmt: skip
        if value > limit * (1 - _NEAR):
            reasons.append(f"{'over' if value > limit * 1.0001 else 'at'} the limit of {name}")
    return "; ".join(reasons)


def _link_seconds(moved: Collective, plan: MeshPlan, kind: Device) -> LinkSeconds:
    """The seconds of a collective's bytes, on links in a host and between hosts."""
    groups, shards = plan.groups, plan.plan.shards
    stride = 1 if MODEL in moved.axes else shards
    devices = (groups if DATA in moved.axes else 1) * (shards if MODEL in moved.axes else 1)
    if moved.kind == "all-to-all":
        return kind.exchange(moved.nbytes, devices, stride)
    if moved.kind == "all-reduce":
        return kind.all_reduce(moved.nbytes, stride, devices)
    return kind.gather(moved.nbytes, stride, devices)
