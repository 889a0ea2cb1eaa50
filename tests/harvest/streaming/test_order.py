"""The order of streamed rows, next to rows that are followed one by one."""

from collections import Counter

import numpy as np
import pytest

from harvest.streaming.order import PARTS, Order

ROWS_W = np.random.default_rng(0).integers(1, 8, 500)  # windows with different numbers of rows


def blocks_of(order: Order) -> list[list[tuple[int, int]]]:
    """The rows of each block as (shard, number in the shard)."""
    return [
        [(shard, row) for shard, start, stop in order.parts_of(block) for row in range(start, stop)]
        for block in range(len(order.starts) - 1)
    ]


@pytest.mark.parametrize("shard_windows", [1, 7, 40, 333, 5000])
@pytest.mark.parametrize("epochs", [1, 3])
def test_each_epoch_has_each_window_once_and_each_row_is_in_one_block(shard_windows, epochs):
    order = Order(ROWS_W, epochs, 0, shard_windows)
    windows = np.concatenate([order.windows(shard) for shard in range(order.shards)]).reshape(epochs, len(ROWS_W))
    assert all(sorted(of_epoch) == list(range(len(ROWS_W))) for of_epoch in windows)
    assert len({tuple(of_epoch) for of_epoch in windows}) == epochs, "two epochs have the same order"

    rows = Counter(row for block in blocks_of(order) for row in block)
    expected = [(shard, row) for shard in range(order.shards) for row in range(order.rows_J[shard])]
    assert rows == Counter(expected)
    assert order.rows == len(expected) == epochs * ROWS_W.sum()
    assert np.diff(order.starts).tolist() == [len(block) for block in blocks_of(order)]


def test_a_block_has_a_part_of_each_of_the_latest_shards():
    order = Order(np.full(4000, 6), 1, 0, 40)
    assert order.shards == 100 and order.rows_J.tolist() == [240] * 100
    for block in range(PARTS, 100):
        assert Counter(shard for shard, _ in blocks_of(order)[block]) == dict.fromkeys(
            range(block - PARTS + 1, block + 1), 240 // PARTS
        )
        assert order.first_needed(block) == block - PARTS + 1


def test_the_order_depends_on_the_seed_and_the_position_alone():
    """Any shard and block can be asked for first, as after a kill."""
    whole, later, other = Order(ROWS_W, 2, 0, 40), Order(ROWS_W, 2, 0, 40), Order(ROWS_W, 2, 1, 40)
    orders = [[order.windows(shard).tolist() for shard in range(whole.shards)] for order in (whole, other)]
    assert later.windows(13).tolist() == orders[0][13] != orders[1][13]
    assert later.parts_of(9) == whole.parts_of(9)
    permutations = [
        tuple(order.permutation(what, number, 50))
        for order in (whole, other)
        for what in ("shard", "block")
        for number in (3, 4)
    ]
    assert len(set(permutations)) == len(permutations)
    assert permutations[0] == tuple(later.permutation("shard", 3, 50))
