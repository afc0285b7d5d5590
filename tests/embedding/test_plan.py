import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlrm_jax.embedding import Piece, Plan, Table, automatic_plan
from dlrm_jax.embedding.plan import column_wise, replicated, row_wise, table_wise
from dlrm_jax.errors import UserError

# Fewer rows than shards, too.
ROWS = st.one_of(st.integers(1, 12), st.integers(1, 9000))


@st.composite
def cases(draw):
    """Shapes of tables, shards, overrides."""
    shapes = draw(st.lists(st.tuples(ROWS, st.integers(1, 64)), min_size=1, max_size=8))
    shards = draw(st.integers(1, 9))
    placement = st.one_of(
        st.sampled_from(["replicated", "row_wise", "table_wise"]),
        st.integers(0, shards - 1).map(lambda k: f"table_wise:{k}"),
    )
    names = st.integers(0, len(shapes) - 1).map(lambda i: f"t{i}")
    return shapes, shards, draw(st.dictionaries(names, placement))


def planned(case):
    """The tables and the plan of a case."""
    shapes, shards, placements = case
    tables = [Table(f"t{i}", rows, dim) for i, (rows, dim) in enumerate(shapes)]
    return tables, automatic_plan(tables, shards, placements)


@settings(max_examples=15)
@given(cases())
def test_every_row_lies_in_exactly_one_piece(case):
    tables, plan = planned(case)
    plan.check(tables)
    for table in tables:
        holders = np.zeros(table.rows)
        for piece in plan.of(table.name):
            rows = [r for r in range(table.rows) if r % piece.modulus == piece.residue]
            assert piece.rows(table.rows) == len(rows)
            assert piece.shard is None or 0 <= piece.shard < plan.shards
            holders[rows] += 1 / piece.splits
        np.testing.assert_allclose(holders, 1)
    assert len(plan.pieces) == sum(len(plan.of(table.name)) for table in tables)


@settings(max_examples=15)
@given(cases())
def test_json_round_trip(case):
    _, plan = planned(case)
    assert Plan.from_json(plan.to_json()) == plan


@settings(max_examples=15)
@given(cases())
def test_overrides_are_followed(case):
    _, plan = planned(case)
    for name, placement in case[2].items():
        kind, _, shard = placement.partition(":")
        if plan.shards > 1:
            assert plan.placement(name) == kind
        if shard:
            assert plan.of(name) == table_wise(name, int(shard))
        if kind == "replicated":
            assert plan.of(name) == replicated(name)
        if kind == "row_wise":
            assert plan.of(name) == row_wise(name, range(plan.shards))


@settings(max_examples=15)
@given(cases())
def test_description_names_every_table_and_its_bytes_add_up(case):
    tables, plan = planned(case)
    header, *lines, last = plan.describe(tables).splitlines()
    assert header.split() == ["table", "rows", "dim", "placement", "shard", "MiB"]
    total = 0.0
    for table, line in zip(tables, lines, strict=True):
        name, rows, dim, placement, shard, mib = line.split()
        assert (name, rows, dim) == (table.name, f"{table.rows:,}", str(table.dim))
        assert placement == plan.placement(name)
        shards = [piece.shard for piece in plan.of(name)]
        if shards == [None] or len(shards) == plan.shards > 1:
            assert shard == "all"
        elif len(shards) == 1:
            assert shard == str(shards[0])
        else:
            assert shard == f"{shards[0]}-{shards[-1]}"
        assert float(mib) == pytest.approx(table.nbytes / 2**20, abs=0.006)
        total += table.nbytes / 2**20 * (plan.shards if placement == "replicated" else 1)
    mibs = [float(mib) for mib in last.removeprefix("MiB of tables per shard: ").split(", ")]
    assert len(mibs) == plan.shards
    assert sum(mibs) == pytest.approx(total, abs=0.051 * plan.shards)


TABLES = [Table("a", 10, 4), Table("b", 20, 4)]
WHOLE_B = (Piece("b", 0),)


@pytest.mark.parametrize(
    ("placements", "message"),
    [
        ({"c": "row_wise", "a": "row_wise"}, "placements: no table named c; there are a, b"),
        ({"a": "rowwise"}, "table a: expected replicated, .*, table_wise .*'rowwise'"),
        ({"a": "row_wise:1"}, "table a: expected shards FIRST-LAST, got '1'"),
        ({"a": "row_wise:2-1"}, "table a: expected shards FIRST-LAST, got '2-1'"),
        ({"a": "row_wise:0-3"}, r"table a: shard must be 0\.\.2, got '3'"),
        ({"a": "column_wise:0"}, "table a: expected .*, got 'column_wise:0'"),
        ({"b": "replicated:0"}, "table b: expected .*, got 'replicated:0'"),
        ({"b": "table_wise:3"}, r"table b: shard must be 0\.\.2, got '3'"),
        ({"b": "table_wise:-1"}, r"table b: shard must be 0\.\.2, got '-1'"),
        ({"b": "table_wise:x"}, r"table b: shard must be 0\.\.2, got 'x'"),
    ],
)
def test_override_errors_name_the_table(placements, message):
    with pytest.raises(UserError, match=message):
        automatic_plan(TABLES, 3, placements)


@pytest.mark.parametrize(
    "pieces",
    [
        (),  # nowhere
        (Piece("a", 0), Piece("a", 1)),  # twice
        (Piece("a", 0, 2, 0),),  # odd rows missing
        (Piece("a", 0, 2, 0), Piece("a", 1, 2, 0)),  # even rows twice
        (Piece("a", 0, 2, 0), Piece("a", 1, 3, 1)),  # unequal moduli
        (Piece("a", 1, 2, 0), Piece("a", 1, 2, 1)),  # both on one shard
        (Piece("a", None, 2, 0), Piece("a", None, 2, 1)),  # replicated, but cut
        (Piece("a", None, 2, 0), Piece("a", 1, 2, 1)),  # half replicated
        (Piece("a", 3),),  # beyond the shards
        (Piece("a", -1),),
        (Piece("a", 0, splits=2, split=0), Piece("a", 1, splits=2, split=1)),  # not all shards
        tuple(Piece("a", 2 - k, splits=3, split=k) for k in range(3)),  # not in order
        (*column_wise("a", 3)[:2], Piece("a", 2, 2, 1, 3, 2)),  # rows missing
        (Piece("a", 0, 2, 0), Piece("a", 1, 2, 1, 3, 1)),  # half of its rows' columns missing
        (Piece("a", 0, split=2),),  # a block of columns of none
        (Piece("a", None, split=2),),
    ],
)
def test_a_plan_that_does_not_hold_every_row_once_is_refused(pieces):
    with pytest.raises(UserError, match="table a: its pieces must hold every row once"):
        Plan(3, pieces + WHOLE_B).check(TABLES)


def test_not_all_pieces_of_a_table_are_printed():
    with pytest.raises(UserError, match="its pieces must hold every row once") as refused:
        Plan(1000, row_wise("a", range(1000))[1:] + WHOLE_B).check(TABLES)
    assert len(str(refused.value)) < 400


def test_a_plan_of_unknown_tables_is_refused():
    plan = Plan(3, (Piece("z", 0), Piece("a", 0), *WHOLE_B))
    with pytest.raises(UserError, match=re.escape("unknown table(s) z")):
        plan.check(TABLES)


def test_a_description_of_other_tables_is_refused():
    with pytest.raises(UserError, match="table z: the plan has no pieces of it"):
        Plan(3, WHOLE_B).describe([Table("z", 3, 4)])


@pytest.mark.parametrize(("tables", "shards"), [([], 3), (TABLES, 0)])
def test_nothing_to_plan_for_is_refused(tables, shards):
    with pytest.raises(UserError, match=f"one shard to plan for, got {len(tables)} and {shards}"):
        automatic_plan(tables, shards)


def test_pieces_may_lie_on_any_shards_of_their_own():
    Plan(3, (Piece("a", 2, 2, 0), Piece("a", 0, 2, 1), *WHOLE_B)).check(TABLES)


def test_columns_are_split_over_all_shards():
    tables = [Table("a", 10, 6), *TABLES[1:]]
    plan = automatic_plan(tables, 3, {"a": "column_wise", "b": "table_wise:1"})
    plan.check(tables)
    assert plan.of("a") == column_wise("a", 3)
    assert plan.placement("a") == "column_wise"
    assert Plan.from_json(plan.to_json()) == plan
    _, a, _, mibs = Plan(3, plan.pieces).describe([Table("a", 2**19, 6), *TABLES[1:]]).splitlines()
    assert a.split()[3:] == ["column_wise", "all", "12.00"]
    assert mibs.endswith("4.0, 4.0, 4.0")


def test_columns_that_the_shards_do_not_divide():
    message = "table a: its width 4 can't be split evenly over 3 shards"
    with pytest.raises(UserError, match=message):
        Plan(3, column_wise("a", 3) + WHOLE_B).check(TABLES)
    with pytest.raises(UserError, match=message):
        automatic_plan(TABLES, 3, {"a": "column_wise"})


def test_rows_over_some_shards():
    plan = automatic_plan(TABLES, 3, {"a": "row_wise:1-2"})
    assert plan.of("a") == (Piece("a", 1, 2, 0), Piece("a", 2, 2, 1))
    assert plan.placement("a") == "row_wise"
    assert plan.describe(TABLES).splitlines()[1].split()[3:5] == ["row_wise", "1-2"]
    plan = Plan(3, (Piece("a", 2, 2, 0), Piece("a", 0, 2, 1), *WHOLE_B))
    assert plan.describe(TABLES).splitlines()[1].split()[3:5] == ["row_wise", "2,0"]


GOOD = '{"table": "a", "shard": 0}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a plan is JSON, as Plan.to_json writes it; got Expecting value: line 1"),
        pytest.param("[" * 100_000, "a plan is JSON, .*; got maximum recursion", id="too deep"),
        ("[]", r"an object with shards and pieces, got \[\]"),
        ('{"shards": 2, "shards": 4, "pieces": []}', "a plan is JSON, .*'shards' is there twice"),
        (
            '{"shards": 2, "pieces": [{"table": "a", "shard": 0, "shard": 1}]}',
            "'shard' is there tw",
        ),
        ('{"shards": 2}', "an object with shards and pieces"),
        ('{"shards": "2", "pieces": []}', "shards to be a number from 1, got '2'"),
        ('{"shards": true, "pieces": []}', "shards to be a number from 1, got True"),
        ('{"shards": 2, "pieces": {}}', "pieces to be a list"),
        (f'{{"shards": 2, "pieces": [{GOOD}, 3]}}', "piece 1: expected an object .* got 3"),
        ('{"shards": 2, "pieces": [{"table": "a"}]}', "piece 0: expected an object with table, s"),
        ('{"shards": 2, "pieces": [{"table": "a", "shard": 0, "row": 1}]}', "piece 0: .*'row': 1"),
        (
            '{"shards": 2, "pieces": [{"table": 7, "shard": 0}]}',
            "expected table to be a name, got 7",
        ),
        ('{"shards": 2, "pieces": [{"table": "a", "shard": -1}]}', "expected shard to be .*got -1"),
        (
            '{"shards": 2, "pieces": [{"table": "a", "shard": 0, "modulus": 0}]}',
            "piece 0: expected modulus to be a number from 1, got 0",
        ),
    ],
)
def test_a_file_that_is_no_plan_says_why(text, message):
    with pytest.raises(UserError, match=message):
        Plan.from_json(text)


def test_what_a_piece_leaves_out_is_as_of_a_whole_table():
    assert Plan.from_json(f'{{"shards": 2, "pieces": [{GOOD}]}}') == Plan(2, table_wise("a", 0))
