import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import make_store

from harvest.errors import InputError
from sae_jax.training import batches as feed_module
from sae_jax.training.batches import Feed


class NumberedRows:
    """A split whose row r is [r, r], so that the rows of a batch are known."""

    def __init__(self, rows: int):
        self.rows_Nx2 = np.repeat(np.arange(rows, dtype=np.float32)[:, None], 2, axis=1)

    def __len__(self):
        return len(self.rows_Nx2)

    def __getitem__(self, row):
        return self.rows_Nx2[row]

    def read(self, start, stop):
        return self.rows_Nx2[start:stop].copy()


def order(feed: Feed, block_steps: int, start: int = 0) -> np.ndarray:
    return np.concatenate([block[0].reshape(-1, 2)[:, 0] for block in feed.blocks(start, block_steps)])


@given(
    rows=st.integers(1, 200),
    batch=st.integers(1, 20),
    epochs=st.integers(1, 3),
    piece=st.integers(1, 30),
    era=st.integers(1, 100),
    block=st.integers(1, 9),
    data=st.data(),
)
@settings(deadline=None, max_examples=150)
def test_any_store_is_read_once_an_epoch_and_from_any_step(rows, batch, epochs, piece, era, block, data):
    if batch > rows:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed_module, "PIECE_BYTES", piece * 8)
        feed = Feed([NumberedRows(rows)], batch, epochs, seed=1, era_bytes=era * 8)
        seen = order(feed, block)
        per_epoch = rows // batch * batch
        assert len(seen) == epochs * per_epoch == feed.total_steps * batch
        for epoch in seen.reshape(epochs, per_epoch):
            assert len(np.unique(epoch)) == per_epoch
        step = data.draw(st.integers(0, feed.total_steps - 1))
        np.testing.assert_array_equal(order(feed, block, start=step), seen[step * batch :])


def test_a_small_store_is_shuffled_completely():
    feed = Feed([NumberedRows(10_000)], 100, epochs=2, seed=3)
    first, second = order(feed, 7).reshape(2, -1)
    assert (first != second).mean() > 0.99
    for epoch in (first, second):
        assert abs(np.corrcoef(epoch, np.arange(len(epoch)))[0, 1]) < 0.05
        assert np.ptp(epoch[:100]) > 8_000


def test_the_order_depends_on_the_seed():
    orders = [order(Feed([NumberedRows(500)], 10, epochs=1, seed=s), 7) for s in (0, 0, 1)]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert (orders[0] != orders[2]).any()


def test_only_one_era_is_in_memory(monkeypatch):
    monkeypatch.setattr(feed_module, "PIECE_BYTES", 10 * 8)
    feed = Feed([NumberedRows(1000)], 5, epochs=1, seed=0, era_bytes=100 * 8)
    for _ in feed.blocks(0, 3):
        assert feed._era is not None and len(feed._era[1]) <= 100


def test_rows_of_a_store_on_disk_come_unchanged(tmp_path):
    store = make_store(tmp_path / "store", windows=60)
    feed = Feed([store.train], 16, epochs=1, seed=0)
    stored = np.concatenate(list(store.train.chunks(1000)))
    fed = np.concatenate([b.reshape(-1, store.d_model) for b in feed.blocks(0, 4)])
    assert fed.dtype == stored.dtype
    assert {row.tobytes() for row in fed} <= {row.tobytes() for row in stored}


def test_a_batch_larger_than_the_store_is_refused():
    with pytest.raises(InputError, match="--batch-size 64: there are only 50 training rows"):
        Feed([NumberedRows(50)], 64, epochs=1, seed=0)
