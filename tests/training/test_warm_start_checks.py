"""What a warm start refuses: other ids, shapes, tables and labels, and another start of a run."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from named_arrays import arrays_of
from saved_run import CONFIG, DATA, learner_on, train_and_save

from dlrm_jax.embedding.initial_values import INITIAL_ROWS
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh
from dlrm_jax.saved_config import OtherShapes
from dlrm_jax.training.build import make_learner
from dlrm_jax.training.warm_start import warm_start
from dlrm_jax.training.warm_start_checks import check_labels, noted_start

GROWN = dataclasses.replace(CONFIG, table_rows=(7, 3001, INITIAL_ROWS + 5), seed=3)
OLDER = ("data of long ago", DATA, "data of yesterday")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """A checkpoint and what is in it."""
    learner, state, checkpoint = train_and_save(tmp_path_factory.mktemp("run"), "1x1")
    return checkpoint, arrays_of(learner, state)


def test_ids_that_do_not_continue_are_refused(saved: tuple[Path, dict[str, np.ndarray]]):
    checkpoint, trained = saved
    learner = make_learner(GROWN, make_mesh("1x1"))
    for same_ids in ((), ("data of long ago",)):
        for name, rows in (("C3", 40), ("C1", 7)):  # also where there are as many rows
            match = rf"table {name} \(with {rows} rows there, .* --grow=OLD_DIR.* on$"
            with pytest.raises(UserError, match=match):
                warm_start(learner, 0, checkpoint, (name,), same_ids)
    with pytest.raises(UserError, match=r"'table' of table C3 has shape \(40, 8\)"):
        warm_start(learner, 0, checkpoint, ("C3",))
    # Where it isn't known what ids mean, it is the user's business.
    found = arrays_of(learner, warm_start(learner, 0, checkpoint, ("C1",)))
    np.testing.assert_array_equal(found["C1/table"], trained["C1/table"])


def test_ids_may_continue_what_the_run_keeps_of_its_data(saved: tuple[Path, dict], tmp_path: Path):
    checkpoint, kept = tmp_path / "checkpoints" / saved[0].name, tmp_path / "preprocessing"
    shutil.copytree(saved[0], checkpoint)
    learner = make_learner(GROWN, make_mesh("1x1"))
    kept.mkdir()
    with pytest.raises(
        UserError, match=r"--grow=OLD_DIRECTORY, where OLD_DIRECTORY is what .* on$"
    ):
        warm_start(learner, 0, checkpoint, ("C1",), ())
    (kept / "metadata.json").touch()
    with pytest.raises(UserError, match=f"preprocess --grow={kept}$"):
        warm_start(learner, 0, checkpoint, ("C1",), ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table_rows": (7, 2999, 40)}, r"C2 has shape \(3000, 8\), expected \(2999, 8\)"),
        ({"embedding_dim": 4, "bottom_mlp": (4,)}, r"has shape \([0-9]*, 8\), expected"),
    ],
)
def test_other_shapes_are_refused(
    saved: tuple[Path, dict[str, np.ndarray]], changes: dict, message: str
):
    learner = make_learner(dataclasses.replace(CONFIG, **changes), make_mesh("1x1"))
    with pytest.raises(UserError, match=message):
        warm_start(learner, 0, saved[0], tuple(learner.collection.tables), OLDER)


def test_a_table_that_is_not_there(saved: tuple[Path, dict[str, np.ndarray]]):
    """No setting is to blame, whatever differs: the message says which tables there are."""
    config = dataclasses.replace(CONFIG, table_rows=(7, 3000, 40, 5), bag_lengths=(1,))
    learner = make_learner(config, make_mesh("1x1"))
    settings = OtherShapes("collisions is 8 there and 9 here", "model is a there and b here")
    message = r"has no table 'C4'; its tables are C1, C2, C3; name only what it has in [^;]*$"
    with pytest.raises(UserError, match=message):
        warm_start(learner, 0, saved[0], ("C1", "C4"), OLDER, settings=settings)


def test_a_run_without_a_warm_start_gets_none_later(tmp_path: Path):
    assert noted_start(None, [], None) is None
    assert noted_start(None, [], {"warm_start": None}) is None
    with pytest.raises(UserError, match=r"was started without, .* or give another workdir"):
        noted_start(tmp_path, ["C1"], {"warm_start": None})
    noted = {"source": str(tmp_path), "names": ["C1"]}
    assert noted_start(tmp_path, ["C1"], {}) == noted, "earlier versions didn't note it"


TOWER, SHARED = ("towers", "towers", 0, "kernel"), ("shared", "layers", 0, "kernel")


BOTH = ("click", "buy")


@pytest.mark.parametrize(
    ("there", "here", "names", "paths"),
    [
        (BOTH, ("buy", "click"), ["all"], []),
        (BOTH, ("buy", "click"), ["C1", "towers"], [SHARED, TOWER]),
        (BOTH, ("buy",), ["all"], []),
        (("click",), BOTH, ["all"], []),
        ((), BOTH, ["all"], []),
    ],
)
def test_layers_of_other_labels_are_refused(
    there: Sequence[str], here: Sequence[str], names: list[str], paths: list[tuple], tmp_path: Path
):
    metadata = {"config": dataclasses.asdict(CONFIG) | {"labels": list(there)}}
    match = f"labels {', '.join(there or ['label'])}, and this run has {', '.join(here)}:"
    with pytest.raises(UserError, match=match):
        check_labels(here, tmp_path, metadata, names, paths)
    check_labels(there, tmp_path, metadata, names, paths)


def test_what_fits_other_labels(saved: tuple[Path, dict[str, np.ndarray]], tmp_path: Path):
    metadata = {"config": dataclasses.asdict(CONFIG) | {"labels": BOTH}}
    check_labels(("click",), tmp_path, metadata, ["all"], [TOWER])  # its tower is the first
    check_labels(("buy", "click"), tmp_path, metadata, ["shared"], [SHARED])
    one = {"config": metadata["config"] | {"labels": ["read"]}}
    check_labels(("click",), tmp_path, one, ["all"], [TOWER])
    learner = learner_on("2x4")
    with pytest.raises(UserError, match="has the labels label, and this run has click, buy:"):
        warm_start(learner, 0, saved[0], ("all",), OLDER, labels=BOTH)
