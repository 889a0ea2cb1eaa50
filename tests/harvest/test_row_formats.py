"""Rows in each number format: what is lost, what is read back everywhere, and rows that do not fit float16."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rows import make_store
from torch.utils.data import DataLoader

from harvest.capture import harvest
from harvest.dataset import TransformerActivationDataset
from harvest.errors import InputError
from harvest.identity import difference, identity
from harvest.request import STORE_DTYPES, HarvestRequest
from harvest.row_formats import BYTES, decoded, encoded
from harvest.store import ActivationStore
from harvest.store_writer import MOST_LOST, StoreWriter
from sae_jax.training.batches import Feed

ROWS = arrays(np.float32, (5, 4), elements=st.floats(-6e4, 6e4, width=32))
LEAST_SCALE = float(np.finfo(np.float32).tiny)  # a smaller scale of a row is itself rounded


def restored(rows_NxD: np.ndarray, dtype: str) -> np.ndarray:
    files = encoded(rows_NxD, dtype)
    return decoded(files["rows"], files.get("scales"))


@given(ROWS)
def test_what_each_format_loses(rows_NxD):
    np.testing.assert_array_equal(restored(rows_NxD, "float32"), rows_NxD)
    np.testing.assert_array_equal(restored(rows_NxD, "float16"), rows_NxD.astype(np.float16))
    np.testing.assert_array_equal(restored(rows_NxD, "bfloat16"), torch.from_numpy(rows_NxD).bfloat16().float().numpy())
    step_Nx1 = np.maximum(np.abs(rows_NxD).max(1, keepdims=True) / 127, LEAST_SCALE)
    assert (np.abs(restored(rows_NxD, "int8") - rows_NxD) <= step_Nx1 * 0.5001).all()


@pytest.mark.parametrize("dtype", STORE_DTYPES)
def test_every_reader_gives_the_same_rows(tmp_path, dtype):
    exact, store = make_store(tmp_path / "exact", dtype="float32"), make_store(tmp_path / "store", dtype=dtype)
    split = store.train
    whole_NxD = split.read(0, len(split))
    apart = np.abs(whole_NxD - exact.train.read(0, len(split))).max()
    assert (apart == 0) == (dtype == "float32") and apart < 0.1
    assert whole_NxD.dtype == (np.float16 if dtype == "float16" else np.float32)
    some_N = np.array([7, 3001, 0, 1500, 7])  # of all three shards
    for reader in (split, split.not_compared(), pickle.loads(pickle.dumps(split))):
        np.testing.assert_array_equal(reader[some_N], whole_NxD[some_N])
    np.testing.assert_array_equal(split[9], whole_NxD[9])
    np.testing.assert_array_equal(split.read(1000, 2000), whole_NxD[1000:2000])
    np.testing.assert_array_equal(np.concatenate(list(split.chunks(999))), whole_NxD)
    block_LxSxBxD = np.concatenate(list(Feed([split], 64, epochs=1, seed=0).blocks(0, 7)), 1)
    assert set(map(bytes, block_LxSxBxD.reshape(-1, store.d_model))) <= set(map(bytes, whole_NxD))
    batch = next(iter(DataLoader(TransformerActivationDataset(store), batch_size=16)))["activations"]
    np.testing.assert_array_equal(batch.numpy(), whole_NxD[:16].astype(np.float32))
    np.testing.assert_allclose(store.mean, whole_NxD.mean(0, dtype=np.float64), rtol=1e-5)
    on_disk = sum(np.load(path).nbytes for path in (tmp_path / "store").glob("train/rows-*"))
    assert on_disk == whole_NxD.size * BYTES[dtype]


def test_damaged_scales_are_found_and_other_scales_are_other_rows(tmp_path):
    store = make_store(tmp_path / "a", dtype="int8")
    other = make_store(tmp_path / "b", dtype="int8", seed=1, text=0)
    assert "of the mean norm of the rows" in difference(identity(store), identity(other))
    store = ActivationStore(store.directory)  # without open files
    path = store.directory / "train" / "scales-00001.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=r"damaged .*: train/scales-00001.npy"):
        store.verify()
    with pytest.raises(InputError, match=r"scales-00001.npy is damaged"):
        store.train.read(0, len(store.train))


# Rows that do not fit.


def store_with(directory: Path, largest: float, rows: int | slice = 3, **description):
    """A store of two shards, of which the second has a large value in one row or in all."""
    rows_NxD = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    large_NxD = rows_NxD.copy()
    large_NxD[rows, 2] = largest
    facts = {"hook_name": "blocks.0.hook_resid_pre", "seq_len": 5, "keep_first_position": False, **description}
    writer = StoreWriter(directory, facts)
    for split, index, written in (("train", 0, rows_NxD), ("train", 1, large_NxD), ("held_out", 0, rows_NxD)):
        writer.add_shard(split, index, written, np.zeros((2, 5), np.int32), np.zeros(2, np.int32))
    return writer.finish(), np.concatenate([rows_NxD, large_NxD])


@pytest.mark.parametrize(("model_dtype", "wider"), [("float32", "float32"), ("bfloat16", "bfloat16")])
def test_a_shard_that_does_not_fit_float16_is_wider_and_the_others_stay(tmp_path, model_dtype, wider):
    store, written_NxD = store_with(tmp_path, 1e6, dtype="float16", model_dtype=model_dtype)
    assert store.manifest["dtype"] == wider
    kinds = [np.load(tmp_path / "train" / f"rows-0000{i}.npy").dtype for i in (0, 1)]
    assert kinds == [np.float16, np.uint16 if wider == "bfloat16" else np.float32]
    found_NxD = store.train.read(0, 16)
    assert found_NxD.dtype == store.held_out[0].dtype == np.float32
    np.testing.assert_array_equal(found_NxD[:8], written_NxD[:8].astype(np.float16))
    np.testing.assert_array_equal(found_NxD[8:], restored(written_NxD[8:], wider))
    np.testing.assert_array_equal(store.train[[11, 2]], found_NxD[[11, 2]])


def test_rows_that_fit_stay_in_float16(tmp_path):
    store, _ = store_with(tmp_path, 6e4, dtype="float16")
    assert store.manifest["dtype"] == "float16" and store.train.read(0, 16).dtype == np.float16


def test_int8_is_refused_if_it_loses_too_much_variance(tmp_path):
    with pytest.raises(InputError, match=r"resid_pre, shard 1: int8 would lose \d.*%.*: use --store-dtype float16"):
        store_with(tmp_path / "a", 300.0, slice(None), dtype="int8")
    store, written_NxD = store_with(tmp_path / "b", 3.0, dtype="int8")
    assert store.manifest["dtype"] == "int8"
    error = np.square(store.train.read(0, 16) - written_NxD).sum()
    assert store.manifest["lost_variance"] == pytest.approx(error / (16 * np.square(store.std).sum()), rel=1e-4)
    assert store.manifest["lost_variance"] < MOST_LOST


def test_int8_rows_of_a_model_take_half_the_space(tmp_path):
    said: list[str] = []
    request = HarvestRequest("bundled", "bundled", 2, n_samples=60, store_dtype="int8")
    (store,) = harvest(request, tmp_path, say=said.append).values()
    assert any("held-out rows in int8" in line for line in said) and any("int8 lost" in line for line in said)
    assert 0 < store.manifest["lost_variance"] < MOST_LOST
    data = sum(facts["bytes"] for path, facts in store.files() if path.name.startswith(("rows", "scales")))
    assert data < 0.55 * 2 * 256 * (len(store.train) + len(store.held_out))
