"""A train step on paper: its products, its parts, and what shortens it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from dlrm_jax.config import Config
from dlrm_jax.embedding import automatic_plan
from dlrm_jax.embedding.planning.choices import Choice
from dlrm_jax.embedding.planning.costs import Costs
from dlrm_jax.embedding.planning.devices import DEVICES
from dlrm_jax.embedding.planning.limits import Limits
from dlrm_jax.embedding.planning.program import FUSED
from dlrm_jax.embedding.planning.search import Search
from dlrm_jax.errors import UserError
from dlrm_jax.presets import preset
from dlrm_jax.simulation.dense import Product, dense_model
from dlrm_jax.simulation.schedule import seconds_of
from dlrm_jax.simulation.step import Options, simulate
from dlrm_jax.training.build import workload
from dlrm_jax.training.tables import describe

H100 = DEVICES["h100"]
# A device whose kernels and collectives start at once.
AT_ONCE = dataclasses.replace(H100, latency=0.0, launch=0.0)
CONFIG = dataclasses.replace(preset("mlperf_v2"), batch_size=65_536)


def planned(groups: int, shards: int, placement: str | None = None, config: Config = CONFIG):
    """Descriptions and a plan of a config's tables."""
    described = describe(config)
    return described, automatic_plan(
        described.tables,
        shards,
        {table.name: placement for table in described.tables} if placement else {},
        optimizer=described.optimizer,
        workload=workload(config, described, groups),
        device=H100,
    )


def seconds(options: Options, device=H100, **changes):
    """Seconds of a step on 16x8, whose config has these changes."""
    config = dataclasses.replace(CONFIG, **changes)
    described, plan = planned(16, 8, "fully_sharded", config)
    return seconds_of(simulate(config, described, plan, 16, device, options))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_products_of_a_model_are_those_of_its_layers(dtype):
    """Of DCN-v2 with three layers of rank 512, and MLPs; dense features need no gradients."""
    config = dataclasses.replace(CONFIG, compute_dtype=dtype)
    model = dense_model(config, describe(config), 10)
    width = 27 * 128
    bottom = [(13, 512), (512, 256), (256, 128)]
    cross = 3 * [(width, 512), (512, width)]
    top = [(width, 1024), (1024, 1024), (1024, 512), (512, 256), (256, 1)]
    layers = [*bottom, *cross, *top]
    flops = [2 * 10 * a * b for a, b in layers]
    assert [product.flops for product in model.forward] == flops
    backward = sum(product.flops for product in model.backward)
    assert backward == 2 * sum(flops) - flops[0]
    assert model.parameters == sum(a * b for a, b in layers) + sum(
        b for _, b in [*bottom, *top]
    ) + 3 * width  # fmt: skip
    first = model.forward[0]
    itemsize = 2 if dtype == "bfloat16" else 4
    assert (first.operands, first.result) == (itemsize * (10 * 13 + 13 * 512), 4 * 10 * 512)


def test_a_product_takes_its_flops_or_its_bytes():
    large = Product(flops=1e12, operands=1e6, result=1e6, itemsize=4)
    passes = 2e6 / AT_ONCE.memory_bandwidth
    assert large.seconds(AT_ONCE) == pytest.approx(1e12 / AT_ONCE.flops32 + passes)
    assert large.seconds(AT_ONCE, "tf32") == pytest.approx(1e12 / AT_ONCE.flops + passes)
    thin = Product(flops=1e6, operands=1e9, result=1e6, itemsize=4)
    assert thin.seconds(AT_ONCE) == pytest.approx(1.003e9 / AT_ONCE.memory_bandwidth)
    assert thin.in_16_bits().seconds(AT_ONCE) == pytest.approx(thin.seconds(AT_ONCE) / 2)
    assert large.seconds(H100) > large.seconds(AT_ONCE)


@pytest.mark.parametrize(
    ("groups", "shards", "placement"), [(1, 8, None), (16, 8, None), (16, 8, "fully_sharded")]
)
def test_tables_take_as_long_as_the_planner_says(groups, shards, placement):
    """The operations on tables add up to the search's estimate, which lets nothing overlap."""
    described, plan = planned(groups, shards, placement)
    slots = simulate(CONFIG, described, plan, groups, AT_ONCE, Options())
    dense = ("forward", "backward", "dense")
    own = [x.operation for x in slots if not x.operation.name.startswith(dense)]
    choices = [[Choice.of(plan, table.name)] for table in described.tables]
    reads = workload(CONFIG, described, groups)
    costs = Costs(described.tables, choices, shards, described.optimizer, reads, AT_ONCE)
    estimate = Search(costs, Limits()).score([0] * len(choices)).seconds
    assert sum(x.seconds for x in own) == pytest.approx(float(estimate))
    assert seconds_of(slots) < sum(slot.operation.seconds for slot in slots)


@pytest.mark.thorough
def test_what_shortens_a_step():
    usual = seconds(Options())
    for faster in (
        Options(pipelined=True),
        Options(in_network=True),
        Options(program=FUSED),
        Options(in_16_bits=True),
    ):
        assert seconds(faster) < usual
    changes: list[dict[str, Any]] = [
        {"comm_dtype": "bfloat16"},
        {"compute_dtype": "bfloat16"},
        {"dense_optimizer": "sgd"},
    ]
    for change in changes:
        assert seconds(Options(), **change) < usual
    assert seconds(Options(), AT_ONCE) < usual


def test_a_split_dense_update_is_shorter_and_sends_parameters_after_it():
    config = dataclasses.replace(CONFIG, shard_dense_optimizer=True)
    described, plan = planned(16, 8, "fully_sharded")
    both = [
        {x.operation.name: x.operation for x in simulate(c, described, plan, 16, H100, Options())}
        for c in (CONFIG, config)
    ]
    whole, split = both
    assert split["dense update: memory"].seconds < whole["dense update: memory"].seconds / 20
    assert split["dense parameters: links"].after == ("dense update: memory",)
    assert "dense parameters: links" not in whole


@pytest.mark.parametrize("groups", [1, 16])
@pytest.mark.parametrize("is_split", [False, True])
def test_dense_gradients_in_bfloat16_pay_within_a_host_only(groups: int, is_split: bool):
    """An all-to-all sends a device's rounded gradients to other hosts before they are added up."""
    described, plan = planned(groups, 8, "fully_sharded")
    devices = groups * 8

    def sent(dtype: str) -> dict[str, float]:
        config = dataclasses.replace(CONFIG, dense_comm_dtype=dtype, shard_dense_optimizer=is_split)
        slots = simulate(config, described, plan, groups, AT_ONCE, Options(in_network=True))
        found = {slot.operation.name: slot.operation.seconds for slot in slots}
        return {name: x for name, x in found.items() if name.startswith("dense ")}

    model = dense_model(CONFIG, described, 10)
    split = model.parameters - 1  # the bias of the logit stays whole, like loss and weight
    assert [shape for shape in model.shapes if math.prod(shape) == 1] == [(1,)]
    first = AT_ONCE.exchange(2 * split, devices)
    first += AT_ONCE.all_reduce(4 * 3, 1, devices, in_network=True)
    then = AT_ONCE.gather(2 * split, 1, devices)
    narrow, wide = sent("bfloat16"), sent("float32")
    assert narrow["dense gradients: links"] == pytest.approx(first.host)
    assert narrow.get("dense gradients: network", 0) == pytest.approx(first.network)
    assert ("dense sums: links" in narrow) != is_split
    if not is_split:
        assert narrow["dense sums: links"] == pytest.approx(then.host)
    assert (sum(narrow.values()) < sum(wide.values())) == (groups == 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_copies_gather_is_sent_after_the_backward_pass(dtype):
    """Ids and cotangents go to other hosts at once, or apart if cotangents are in bfloat16.

    Besides, an all-reduce sums the gradients of all rows of small tables.
    """
    config = dataclasses.replace(CONFIG, comm_dtype=dtype)
    described, plan = planned(16, 8, "row_wise")
    own, started = (
        {x.operation.name: x.operation.seconds for x in simulate(
            config, described, plan, 16, dataclasses.replace(AT_ONCE, latency=latency), Options()
        )}
        for latency in (0.0, 1.0)
    )  # fmt: skip
    starts = {
        name: round(started[name] - own[name]) for name in own if not name.startswith("dense")
    }
    assert {name: count for name, count in starts.items() if count} == {
        "ids: links": 1,
        "vectors: links": 1,
        "cotangents: links": 1,
        "update: network": 2 if dtype == "float32" else 3,
    }


def test_parameters_that_no_device_count_divides_stay_whole():
    config = dataclasses.replace(preset("small"), batch_size=480)
    described, plan = planned(3, 4, "fully_sharded", config)
    rounded = dataclasses.replace(config, dense_comm_dtype="bfloat16")
    slots = [simulate(each, described, plan, 3, H100, Options()) for each in (config, rounded)]
    assert slots[0] == slots[1]
    split = dataclasses.replace(config, shard_dense_optimizer=True)
    with pytest.raises(UserError, match=r"shard_dense_optimizer: expected layers .* 12 devices"):
        simulate(split, described, plan, 3, H100, Options())


def test_one_device_has_no_links():
    described, plan = planned(1, 1, config=preset("kaggle"))
    slots = simulate(preset("kaggle"), described, plan, 1, H100, Options())
    assert {slot.operation.resource for slot in slots} == {"memory", "rows", "products"}


def test_fully_sharded_tables_scale_to_a_thousand_devices():
    """At constant work a device, a step on 1,024 devices takes little longer than on 128."""

    def weak(groups: int) -> float:
        config = dataclasses.replace(CONFIG, batch_size=512 * 8 * groups)
        described, plan = planned(groups, 8, "fully_sharded", config)
        return seconds_of(simulate(config, described, plan, groups, H100, Options()))

    assert weak(128) < 1.15 * weak(16)
