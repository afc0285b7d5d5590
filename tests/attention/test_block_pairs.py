"""Pairs of blocks cover what queries attend to, once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlrm_jax.attention.block_pairs import BLOCK, BlockPairs
from dlrm_jax.attention.jagged import sequences_of
from dlrm_jax.errors import UserError


def times_seen(pairs: BlockPairs, queries: int, keys: int) -> np.ndarray:
    """How often each key is seen by each query, [queries, keys]."""

    def add(chunk, sums):
        return sums.at[chunk.queries, chunk.keys].add(chunk.seen.astype("int32"))

    shape = queries // BLOCK, keys // BLOCK, BLOCK, BLOCK
    found = jax.jit(lambda start: pairs.loop(add, start))(jnp.zeros(shape, "int32"))
    return np.asarray(found).swapaxes(1, 2).reshape(queries, keys)


@pytest.mark.parametrize("seed", range(4))
def test_each_key_between_first_and_end_is_seen_once(seed: int):
    rng, queries, keys = np.random.default_rng(seed), 4 * BLOCK, 20 * BLOCK
    firsts = rng.integers(0, keys, queries)
    ends = np.minimum(firsts + rng.integers(0, 3 * BLOCK, queries), keys)
    nothing = rng.random(queries) < 0.3
    ends[nothing] = firsts[nothing] - rng.integers(0, 2, queries)[nothing]
    ends[BLOCK : 2 * BLOCK] = 0  # a whole block
    pairs = BlockPairs(jnp.asarray(firsts, "int32"), jnp.asarray(ends, "int32"))
    place = np.arange(keys)
    wanted = (firsts[:, None] <= place) & (place < ends[:, None])
    np.testing.assert_array_equal(times_seen(pairs, queries, keys), wanted)


def test_causal_pairs_are_those_up_to_a_token_in_its_sequence():
    lengths, tokens = [0, 70, 3, 130, 64], 6 * BLOCK
    found = times_seen(
        BlockPairs.causal(sequences_of(jnp.asarray(lengths, "int32"), tokens)), tokens, tokens
    )
    number = np.repeat(np.arange(len(lengths)), lengths)
    number = np.pad(number, (0, tokens - len(number)), constant_values=-1)
    place = np.arange(tokens)
    same = (number[:, None] == number) & (number >= 0)
    np.testing.assert_array_equal(found, same & (place <= place[:, None]))


def test_queries_come_in_whole_blocks():
    with pytest.raises(UserError, match="expected a multiple of 64 packed tokens"):
        BlockPairs(jnp.zeros(65, "int32"), jnp.ones(65, "int32"))
