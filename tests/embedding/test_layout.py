import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dlrm_jax.embedding import SGD, Adagrad, Feature, Lookup, Plan, Table, automatic_plan
from dlrm_jax.embedding.layout import make_layout
from dlrm_jax.embedding.plan import table_wise
from dlrm_jax.embedding.slab import OWN_SLAB_ROWS

OPTIMIZERS = [None, SGD(0.5), Adagrad(0.1)]
PLACEMENTS = ["replicated", "row_wise", "table_wise"]


POOLINGS = st.sampled_from(["sum", "none"])


def quarter(ids):
    return ids // 4


@st.composite
def cases(draw):
    """Shapes, optimizers and placements of tables; bag lengths; who reads what; shards."""
    table = st.tuples(
        st.integers(1, 40),
        st.sampled_from([1, 4]),
        st.sampled_from(["float32", "bfloat16"]),
        st.integers(0, len(OPTIMIZERS) - 1),
        st.booleans(),
        st.sampled_from(PLACEMENTS),
    )
    tables = draw(st.lists(table, min_size=1, max_size=6))
    lengths = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    feature, mapped = st.integers(0, len(lengths) - 1), st.booleans()
    reads = [(i, draw(feature), draw(mapped), draw(POOLINGS)) for i in range(len(tables))]
    more = st.tuples(st.integers(0, len(tables) - 1), feature, mapped, POOLINGS)
    return tables, lengths, reads + draw(st.lists(more, max_size=4)), draw(st.integers(1, 5))


def laid_out(case):
    shapes, lengths, reads, shards = case
    tables = [
        Table(f"t{i}", rows, dim, dtype, optimizer=OPTIMIZERS[own], trainable=trainable)
        for i, (rows, dim, dtype, own, trainable, _) in enumerate(shapes)
    ]
    features = [Feature(f"f{i}", length) for i, length in enumerate(lengths)]
    lookups = [
        Lookup(f"l{i}", f"f{feature}", f"t{table}", pooling, quarter if mapped else None)
        for i, (table, feature, mapped, pooling) in enumerate(reads)
    ]
    plan = automatic_plan(tables, shards, {f"t{i}": shape[-1] for i, shape in enumerate(shapes)})
    layout = make_layout(tables, features, lookups, plan, SGD(1.0))
    return tables, features, lookups, plan, layout


@given(cases())
def test_pieces_do_not_overlap_in_their_slab_and_fill_it(case):
    tables, _, _, plan, layout = laid_out(case)
    assert sorted(name for slab in layout.slabs for name in slab.tables) == sorted(
        table.name for table in tables
    )
    assert len({slab.name for slab in layout.slabs}) == len(layout.slabs)
    for slab in layout.slabs:
        heights = []
        for shard in range(plan.shards) if slab.sharded else [None]:
            rows = [
                start + i
                for piece, start in slab.pieces
                if piece.shard == shard
                for i in range(piece.rows(slab.tables[piece.table].rows))
            ]
            assert sorted(rows) == list(range(len(rows)))  # none twice, no gap
            heights.append(len(rows))
        assert slab.rows == max(heights)
        assert {piece for piece, _ in slab.pieces} == {p for t in slab.tables for p in plan.of(t)}
        for table in slab.tables.values():
            wanted = (table.optimizer or SGD(1.0)) if table.trainable else None
            assert (slab.dim, slab.dtype) == (table.dim, np.dtype(table.dtype))
            assert slab.optimizer == wanted
            assert slab.sharded == (plan.placement(table.name) != "replicated")


@given(cases())
def test_the_parts_of_a_bag_cover_its_table_once(case):
    tables, _, lookups, _, layout = laid_out(case)
    by_name = {table.name: table for table in tables}
    used = set()
    bags = []  # lookup and columns
    for lookup, span in zip(lookups, layout.columns, strict=True):
        columns = list(range(span.start, span.stop))
        own = [[column] for column in columns] if lookup.pooling == "none" else [columns]
        assert layout.bags[lookups.index(lookup)] == range(len(bags), len(bags) + len(own))
        bags += [(lookup, columns) for columns in own]
    assert len(bags) == len(layout.positions)
    for i, (lookup, columns) in enumerate(bags):
        ids = np.arange(by_name[lookup.table].rows)
        holders = np.zeros(len(ids), int)
        places = []
        for b, m, t in layout.positions[i]:
            block = layout.blocks[b]
            assert lookup.table in block.slab.tables
            assert block.bag[m, t] == i
            np.testing.assert_array_equal(block.column[m, t], columns)
            own = ids < block.limit[m, t]
            own &= ids % block.modulus[m, t] == block.residue[m, t]
            holders += own
            rows = ids[own] // block.modulus[m, t] + block.offset[m, t]
            assert np.all((rows >= 0) & (rows < block.slab.rows))
            places += [(m, row) for row in rows]
            shard = m if block.slab.sharded else None
            start = {
                piece: start for piece, start in block.slab.pieces if piece.table == lookup.table
            }
            assert block.offset[m, t] in [s for piece, s in start.items() if piece.shard == shard]
            used.add((b, m, t))
        np.testing.assert_array_equal(holders, 1)
        assert len(set(places)) == len(ids)  # every id has a row of its own

    for b, block in enumerate(layout.blocks):
        for m, t in np.ndindex(block.bag.shape):
            padding = (b, m, t) not in used
            assert padding == (block.bag[m, t] == -1)
            if padding:
                assert block.limit[m, t] == 0
        assert np.any(block.bag[:, block.bag.shape[1] - 1] >= 0)  # no more padding than needed


@given(cases())
def test_columns_are_the_features_own_or_appended_by_their_map(case):
    _, features, lookups, _, layout = laid_out(case)
    ends = np.cumsum([feature.max_ids for feature in features])
    own = {f.name: slice(end - f.max_ids, end) for f, end in zip(features, ends, strict=True)}
    appended, sources = int(ends[-1]), iter(layout.mapped)
    for lookup, columns in zip(lookups, layout.columns, strict=True):
        source = own[lookup.feature]
        if lookup.id_map is None:
            assert columns == source
            continue
        assert next(sources) == (source, lookup.id_map)
        assert columns.start == appended
        appended = columns.stop
        assert columns.stop - columns.start == source.stop - source.start
    assert next(sources, None) is None


def test_a_large_table_has_a_slab_of_its_own():
    rows = {"a": OWN_SLAB_ROWS, "b": 3000, "c": OWN_SLAB_ROWS + 1, "d": 3000}
    tables = [Table(name, n, 4) for name, n in rows.items()]
    plan = automatic_plan(tables, 2, dict.fromkeys(rows, "row_wise"))
    features = [Feature(name) for name in rows]
    layout = make_layout(tables, features, [Lookup(n, n, n) for n in rows], plan, SGD(1.0))
    assert [set(slab.tables) for slab in layout.slabs] == [{"a"}, {"b", "d"}, {"c"}]
    assert [slab.rows for slab in layout.slabs] == [500_000, 3000, 500_001]


def test_a_block_holds_the_bags_of_one_length():
    tables = [Table(name, 10, 4) for name in "abc"]
    features = [Feature("one", 1), Feature("three", 3)]
    lookups = [Lookup("a", "one", "a"), Lookup("b", "three", "b"), Lookup("c", "three", "c")]
    plan = automatic_plan(tables, 2, dict.fromkeys("abc", "table_wise"))
    layout = make_layout(tables, features, lookups, plan, SGD(1.0))
    assert len(layout.slabs) == 1
    assert [(block.length, block.bag.shape[1]) for block in layout.blocks] == [(1, 1), (3, 1)]


def test_split_columns_lie_alike_on_all_shards():
    tables = [Table("a", 10, 4), Table("b", 7, 4), Table("c", 5, 4)]
    features = [Feature("one", 1), Feature("three", 3)]
    lookups = [Lookup("a", "one", "a"), Lookup("b", "three", "b"), Lookup("c", "one", "c")]
    plan = automatic_plan(tables, 2, {"a": "column_wise", "b": "column_wise", "c": "row_wise"})
    layout = make_layout(tables, features, lookups, plan, SGD(1.0))
    columns, rows = layout.slabs
    assert (columns.split, columns.rows, columns.dim) == ("columns", 17, 4)
    assert rows.split == "rows"
    assert {piece.table: start for piece, start in columns.pieces} == {"a": 0, "b": 10}
    for block in layout.blocks[:2]:
        for field in (block.bag, block.column, block.limit, block.offset):
            np.testing.assert_array_equal(field[0], field[1])


def test_an_array_that_would_have_too_many_rows_is_split():
    most = 2**30
    tables = [Table(name, most, 2) for name in "abc"] + [Table("d", 7, 2)]
    plan = Plan(2, tuple(piece for t in tables for piece in table_wise(t.name, t.name == "c")))
    features, lookups = [Feature("f")], [Lookup(t.name, "f", t.name) for t in tables]
    layout = make_layout(tables, features, lookups, plan, SGD(1.0))
    assert [(slab.name, slab.rows) for slab in layout.slabs] == [
        ("a", most),
        ("b+1", most),
        ("d", 7),
    ]
    ends = [offset + piece.rows(slab.tables[piece.table].rows)
            for slab in layout.slabs for piece, offset in slab.pieces]  # fmt: skip
    assert max(ends) == most
