import numpy as np
import pytest
from small_collection import LOOKUPS, TABLES, collection, random_batch

from dlrm_jax.embedding import automatic_plan
from dlrm_jax.errors import UserError


def test_a_plan_for_another_mesh_is_refused():
    with pytest.raises(UserError, match="the plan is for 3 shards, the mesh has 4"):
        collection(plan=automatic_plan(TABLES, 3))


def test_a_plan_of_other_tables_is_refused():
    with pytest.raises(UserError, match="table f: its pieces must hold every row once"):
        collection(plan=automatic_plan(TABLES[:-1], 4))


def test_tables_without_an_optimizer_are_refused_unless_frozen():
    with pytest.raises(UserError, match=r"no optimizer for the table\(s\) e$"):
        collection(optimizer=None)


def test_contradicting_descriptions_are_refused():
    with pytest.raises(UserError, match=r"no lookup reads the table\(s\) f"):
        collection(lookups=LOOKUPS[:-1])


def test_ids_are_checked_by_name():
    tables = collection()
    ids, _ = random_batch()
    tables.check_ids(ids)
    for (sample, column), id_, message in [
        ((6, 0), 5, r"feature one, sample 6: id 5 .* table b has ids 0\.\.4"),
        ((3, 2), 11, r"feature three, sample 3: id 11 .* table d has ids 0\.\.10"),
        ((0, 4), 29, r"feature two, sample 0: id 29 .* table e has ids 0\.\.28"),
        ((15, 8), -2, r"feature other, sample 15: id -2 .* -1 stands for absent"),
        ((2, 4), 100, r"feature two, sample 2: id 100 .* table c has ids 0\.\.49"),
    ]:
        bad = ids.copy()
        bad[sample, column] = id_
        with pytest.raises(UserError, match=message):
            tables.check_ids(bad)
    for columns in (8, 10):
        with pytest.raises(UserError, match=f"expected 9 id columns, got {columns}"):
            tables.check_ids(np.full((4, columns), -1))
