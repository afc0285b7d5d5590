"""Batches of ids by feature name, ragged or padded; placed and checked on the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dlrm_jax.embedding import SGD, EmbeddingCollection, Feature, Lookup, Ragged, Table
from dlrm_jax.errors import UserError
from dlrm_jax.mesh import make_mesh

B = 8


@pytest.fixture(scope="module")
def collection():
    return EmbeddingCollection(
        [Table("users", 40, 4), Table("items", 30, 4)],
        [Feature("user"), Feature("history", 3)],
        [Lookup("user", "user", "users"), Lookup("taste", "history", "items", "mean")],
        make_mesh("2x4"),
        SGD(1.0),
    )


USERS = np.arange(B)
HISTORY = np.array([[1, 2, 3], [4, -1, -1], [-1, -1, -1]] + [[5, 6, -1]] * 5)
RAGGED = Ragged(np.array([1, 2, 3, 4] + [5, 6] * 5), np.array([3, 1, 0] + [2] * 5))
MATRIX = np.concatenate([USERS[:, None], HISTORY], axis=1)


@pytest.mark.parametrize(
    "ids",
    [
        MATRIX,
        {"history": HISTORY, "user": USERS},
        {"user": USERS[:, None].astype(np.uint8), "history": HISTORY.astype(np.uint8)},
        {"user": USERS, "history": RAGGED},
    ],
    ids=["matrix", "by name", "unsigned", "ragged"],
)
def test_all_forms_are_one_matrix(collection, ids):
    if isinstance(ids, dict) and getattr(ids["history"], "dtype", None) == np.uint8:
        ids = {"user": ids["user"], "history": np.where(HISTORY < 0, 7, HISTORY).astype(np.uint8)}
        expected = np.where(MATRIX < 0, 7, MATRIX)
    else:
        expected = MATRIX
    placed = collection.put(ids)
    assert placed.dtype == jnp.int32
    assert placed.sharding.spec == PartitionSpec(("data", "model"))
    np.testing.assert_array_equal(placed, expected)


def test_weights_have_the_form_of_the_ids(collection):
    values = Ragged(np.linspace(0, 1, 14, dtype=np.float32), RAGGED.lengths)
    ids, weights = collection.put(
        {"user": USERS, "history": RAGGED},
        {"user": np.ones(B, np.float32), "history": values},
    )
    np.testing.assert_array_equal(ids, MATRIX)
    assert float(weights[0, 2]) == pytest.approx(values.values[1])
    np.testing.assert_array_equal(weights[2], [1, 0, 0, 0])


def test_lookups_take_ids_by_name_in_a_step(collection):
    state = collection.init(0)
    lookup = jax.jit(lambda ids: collection.lookup(state, ids)[0])
    narrow = {"user": jnp.asarray(USERS), "history": jnp.asarray(HISTORY[:, :2])}
    cut = np.where(np.arange(4) == 3, -1, MATRIX)
    for found, expected in zip(*map(jax.tree.leaves, (lookup(narrow), lookup(cut))), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"user": USERS}, r"expected the features user, history; got user"),
        ({"user": USERS, "history": HISTORY, "x": USERS}, r"got user, history, x"),
        ({"user": HISTORY, "history": HISTORY}, r"feature user: .* at most 1 ids, got \[8, 3\]"),
        (
            {"user": USERS[:4], "history": HISTORY},
            r"same number of samples .* {'user': 4, 'history': 8}",
        ),
        ({"user": USERS / 2, "history": HISTORY}, r"feature user: expected integers, got float64"),
        (MATRIX.astype(np.float32), r"expected integers, got float32"),
        (np.where(MATRIX == 3, 2**32 + 5, MATRIX), r"expected 32-bit numbers, .* 4294967301"),
        (np.where(MATRIX == 3, 40, MATRIX), r"id 40 is out of range; table"),
        (np.ma.masked_equal(MATRIX, 3), r"ids: expected a plain array, got a masked one; .*filled"),
        (
            {"user": USERS, "history": RAGGED._replace(values=np.ma.masked_equal(RAGGED[0], 3))},
            r"feature history: expected a plain array, got a masked one",
        ),
        ([[2**70, 1, 2, 3]] * B, r"expected 32-bit numbers, got 1 to 1180591620717411303424"),
        ([[2**63, 1, 2, -1]] * B, r"expected 32-bit numbers, got -1 to 9223372036854775808"),
        ([[1.0, 1, 2, -1]] * B, r"expected integers, got float64"),
        (MATRIX > 0, r"expected integers, got bool"),
        (MATRIX.astype(object), r"expected integers, got object"),
        (MATRIX.astype("timedelta64[s]"), r"expected integers, got timedelta64"),
        (MATRIX[:, 0], r"ids: expected \[B, 4\], .* got \[8\]"),
        (MATRIX[:5], r"5 samples can't be split evenly over the 8 devices.*pad_batch"),
    ],
)
def test_what_does_not_fit_is_refused(collection, ids, message):
    with pytest.raises(UserError, match=message):
        collection.put(ids)


def test_ragged_bags_are_padded_with_their_batch(collection):
    short = Ragged(RAGGED.values[:4], RAGGED.lengths[:3])
    ids, weights = collection.pad_batch({"user": USERS[:3], "history": short})
    np.testing.assert_array_equal(ids[:3], MATRIX[:3])
    np.testing.assert_array_equal(weights, [1] * 3 + [0] * 5)
    collection.check_ids({"user": USERS, "history": RAGGED})
    # As many bags as there are ids in each: not a matrix of values and lengths.
    square = Ragged(np.array([5, 6]), np.array([1, 1]))
    ids, _ = collection.pad_batch({"user": USERS[:2], "history": square})
    np.testing.assert_array_equal(ids[:2, 1:], [[5, -1, -1], [6, -1, -1]])


def test_lists_of_different_lengths_are_refused(collection):
    with pytest.raises(UserError, match=r"feature history: expected .* Ragged\(values, lengths\)"):
        collection.put({"user": USERS, "history": [[1, 2], [3], *[[]] * 6]})


def test_dtypes_are_not_mixed_in_a_step(collection):
    mixed = {"user": jnp.asarray(USERS, jnp.uint8), "history": jnp.asarray(HISTORY)}
    with pytest.raises(UserError, match="expected one dtype, got int32, uint8"):
        jax.eval_shape(collection.lookup, collection.state_specs(), mixed)


def test_ids_are_not_looked_at_on_request(collection):
    collection.put(np.where(MATRIX == 3, 40, MATRIX), check=False)
    with pytest.raises(UserError, match=r"expected \[B, 4\], .* got \[8, 2\]"):
        collection.put(MATRIX[:, :2], check=False)


def pooled_loss(pooled):
    return jnp.sum(pooled["user"])


def looked_up(collection, ids, id_weights=None):
    """Traces lookups of what is on the host; nothing is compiled."""
    loss = collection.value_and_grad(pooled_loss)
    jax.eval_shape(lambda state: loss(state, ids, id_weights=id_weights), collection.state_specs())
    lookup = collection.lookup
    jax.eval_shape(lambda state: lookup(state, ids, id_weights), collection.state_specs())


@pytest.mark.parametrize("number", [2**32 + 5, 2**32 - 1, 2**31])
@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_wide_numbers_on_the_host_are_not_wrapped_by_a_lookup(collection, number, dtype):
    wide = np.where(MATRIX < 0, 0, MATRIX).astype(dtype)
    looked_up(collection, wide)
    wide[3, 0] = number
    for ids in (wide, {"user": wide[:, 0], "history": wide[:, 1:]}, wide.tolist()):
        with pytest.raises(UserError, match=f"expected 32-bit numbers, got 0 to {number}"):
            looked_up(collection, ids)


def test_a_lookup_pads_ragged_bags_of_the_host(collection):
    square = Ragged(np.array([5, 6] * 4), np.ones(8, int))  # not a matrix of values and lengths
    looked_up(collection, {"user": USERS, "history": square})
    with pytest.raises(UserError, match=r"Ragged bags are padded on the host; .*put before jit"):
        jax.eval_shape(collection.lookup, collection.state_specs(),
                       {"user": USERS, "history": RAGGED})  # fmt: skip


@pytest.mark.parametrize("dtype", [int, bool, np.complex64, jnp.bfloat16])
def test_id_weights_are_floats(collection, dtype):
    weights = np.ones(MATRIX.shape, dtype)
    ragged = {"user": weights[:, 0], "history": Ragged(np.ones(14, dtype), RAGGED.lengths)}
    for ids, own in ((MATRIX, weights), ({"user": USERS, "history": RAGGED}, ragged)):
        for call in (collection.put, lambda *args: looked_up(collection, *args)):
            with pytest.raises(UserError, match="id_weights: expected floating numbers, got"):
                call(ids, own)
    with pytest.raises(UserError, match="id_weights: expected a plain array, got a masked one"):
        collection.put(MATRIX, np.ma.masked_equal(np.ones(MATRIX.shape, "f4"), 1))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_traced_weights_of_half_precision_are_refused(collection, dtype):
    """Sums of them would be rounded, and nothing on the host could widen them."""
    weights = jnp.ones(MATRIX.shape, dtype)
    for call in (collection.lookup, collection.value_and_grad(pooled_loss)):
        with pytest.raises(UserError, match=f"id_weights: expected float32, got {weights.dtype}"):
            jax.eval_shape(
                lambda state, own, call=call: call(state, jnp.asarray(MATRIX), id_weights=own),
                collection.state_specs(),
                weights,
            )


def test_half_precision_weights_are_widened(collection):
    for dtype in ("f2", ">f4"):
        _, weights = collection.put(MATRIX, np.full(MATRIX.shape, 0.5, dtype))
        assert weights.dtype == jnp.float32
        np.testing.assert_array_equal(weights, 0.5)
    with pytest.raises(UserError, match=r"id_weights: expected one for each id, \[8, 4\]"):
        collection.put(MATRIX, np.ones((B, 2), "f4"))


def test_weights_of_64_bits_may_be_ragged(collection):
    weights = {"user": np.ones(B), "history": Ragged(np.full(14, 0.5), RAGGED.lengths)}
    _, placed = collection.put({"user": USERS, "history": RAGGED}, weights)
    np.testing.assert_array_equal(placed[0], [1, 0.5, 0.5, 0.5])
    with pytest.raises(UserError, match="id_weights: expected the features user, history; got us"):
        collection.put(MATRIX, {"user": np.ones(B)})


def test_no_bags_at_all_are_a_list_of_none(collection):
    ids = collection.put({"user": USERS, "history": Ragged([], [0] * B)})
    np.testing.assert_array_equal(ids[:, 1:], -1)


def test_a_padded_batch_counts_exactly(collection):
    ids, labels, weights = collection.pad_batch({"user": USERS[:5], "history": HISTORY[:5]},
                                                np.arange(5.0))  # fmt: skip
    np.testing.assert_array_equal(ids[:5], MATRIX[:5])
    assert np.all(ids[5:] == -1)
    np.testing.assert_array_equal(labels, [0, 1, 2, 3, 4, 0, 0, 0])
    np.testing.assert_array_equal(weights, [1] * 5 + [0] * 3)
    same, only = collection.pad_batch(MATRIX)
    assert len(same) == len(only) == B
    with pytest.raises(UserError, match="expected 5 samples as in ids, got 3"):
        collection.pad_batch(MATRIX[:5], np.zeros(3))


def test_weights_of_ragged_bags_have_the_lengths_of_the_ids(collection):
    lengths = np.array([1, 3, 0] + [2] * 5)  # of as many ids
    weights = {"user": np.ones(B, np.float32), "history": Ragged(np.ones(14, "f4"), lengths)}
    with pytest.raises(UserError, match="weights of history: expected the lengths of its ids"):
        collection.put({"user": USERS, "history": RAGGED}, weights)


USER_WEIGHTS = np.ones(B, np.float32)
HISTORY_WEIGHTS = np.ones((B, 3), np.float32)


@pytest.mark.parametrize(
    ("history", "weights", "message"),
    [
        (
            HISTORY,
            HISTORY_WEIGHTS[:, :1],
            r"weight for each of 3 id\(s\) of a bag, got shape \[8, 1",
        ),
        (HISTORY, USER_WEIGHTS, r"weight for each of 3 id\(s\) of a bag, got shape \[8\]"),
        (
            HISTORY[:, :2],
            HISTORY_WEIGHTS,
            r"weight for each of 2 id\(s\) of a bag, got shape \[8, 3",
        ),
        (HISTORY.tolist(), HISTORY_WEIGHTS[:, :2], "of history: expected a weight for each of 3"),
        (HISTORY, Ragged(np.ones(8, "f4"), np.ones(8, int)), "of history: expected an array like"),
        (HISTORY, [[1.0, 2.0], [1.0]], r"id_weights: .* bags of different lengths as Ragged"),
        (Ragged(1, RAGGED.lengths), HISTORY_WEIGHTS, r"history: .* got \[\] and \[8\]"),
        (Ragged(RAGGED.values, 14), HISTORY_WEIGHTS, r"history: .* got \[14\] and \[\]"),
    ],
)
def test_each_id_has_a_weight_of_its_own(collection, history, weights, message):
    ids, weights = {"user": USERS, "history": history}, {"user": USER_WEIGHTS, "history": weights}
    for call in (collection.put, lambda *args: looked_up(collection, *args)):
        with pytest.raises(UserError, match=message):
            call(ids, weights)


def test_weights_are_as_wide_as_the_ids_that_are_given(collection):
    narrow, one = {"user": USERS[:, None], "history": HISTORY[:, :2]}, np.float32(0.5)
    _, weights = collection.put(narrow, {"user": USER_WEIGHTS, "history": np.full((B, 2), one)})
    np.testing.assert_array_equal(weights, [[1, 0.5, 0.5, 0]] * B)
    with pytest.raises(UserError, match="of history: expected a weight for each of 3 id"):
        collection.put(MATRIX, {"user": USER_WEIGHTS, "history": HISTORY_WEIGHTS[:, :2]})
    for weights in (np.ones((2 * B, 4), "f4"), np.ones((B, 5), "f4"), np.ones(B, "f4")):
        with pytest.raises(UserError, match=r"id_weights: expected one for each id, \[8, 4\], got"):
            collection.put(MATRIX, weights)


@pytest.mark.parametrize("shape", [(), (8,), (2, 2, 1)])
def test_an_id_array_has_two_axes(collection, shape):
    for call in (collection.put, collection.check_ids, collection.pad_batch):
        with pytest.raises(UserError, match=r"ids: expected \[B, 4\], the bags side by side, got"):
            call(np.zeros(shape, int))


def test_ids_are_no_differences_of_times_and_weights_no_long_doubles(collection):
    with pytest.raises(UserError, match=r"ids: expected integers, got timedelta64\[s\]"):
        collection.put(MATRIX.astype("m8[s]"))
    with pytest.raises(UserError, match="expected floating numbers, got float128; cast to float32"):
        collection.put(MATRIX, np.ones(MATRIX.shape, np.longdouble))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_id_weights_are_finite(collection, bad):
    weights = np.ones(MATRIX.shape, np.float32)
    weights[3, 2] = bad
    message = rf"^id_weights, sample 3: expected finite numbers, got {bad} for feature history"
    with pytest.raises(UserError, match=message):
        collection.put(MATRIX, weights)
    collection.put(MATRIX, weights, check=False)
    absent = MATRIX.copy()
    absent[3, 2] = -1
    collection.put(absent, weights)
    with pytest.raises(UserError, match=r"^id_weights, sample 3: expected finite numbers"):
        collection.put(MATRIX, np.where(np.isfinite(weights), 1.0, 1e300))
