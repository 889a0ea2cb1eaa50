"""Stores of rows made from sparse combinations of random directions, for tests that need no language model."""

from pathlib import Path

import numpy as np

from harvest.store import ActivationStore
from harvest.store_writer import StoreWriter

SEQ_LEN = 9  # 8 rows per window, because the first position is left out
SOURCE = {"asked": "none", "location": "none", "fell_back": False, "fingerprint": "none"}
SOURCES = {"model": SOURCE, "dataset": SOURCE, "weights_hash": "none", "tokenizer_hash": "none"}


def sparse_rows(rng: np.random.Generator, directions_GxD: np.ndarray, count: int) -> np.ndarray:
    active_NxG = rng.random((count, len(directions_GxD))) < 8 / len(directions_GxD)
    strength_NxG = active_NxG * rng.uniform(0.5, 2.0, active_NxG.shape)
    noise_NxD = 0.1 * rng.standard_normal((count, directions_GxD.shape[1]))
    return strength_NxG @ directions_GxD + noise_NxD + np.linspace(-3, 3, directions_GxD.shape[1])


def make_store(
    directory: Path,
    windows: int = 500,
    d_model: int = 32,
    dtype: str = "float16",
    shards: int = 3,
    seed: int = 0,
    layer: int = 0,
    text: int | None = None,
) -> ActivationStore:
    """A store of sparse rows. Stores with the same `text` (default: the seed) count as having the same windows."""
    rng = np.random.default_rng(seed)
    directions_GxD = rng.standard_normal((2 * d_model, d_model))
    description = {
        **SOURCES,
        "hook": "resid_pre",
        "hook_name": f"blocks.{layer}.hook_resid_pre",
        "layer": layer,
        "seq_len": SEQ_LEN,
        "keep_first_position": False,
        "dtype": dtype,
        "d_model": d_model,
        "windows_hash": f"{windows} windows of text {seed if text is None else text}",
    }
    writer = StoreWriter(directory, description)
    document = 0
    for split, share in (("train", 0.8), ("held_out", 0.2)):
        for shard, count in enumerate(np.full(shards, int(windows * share) // shards)):
            rows_NxD = sparse_rows(rng, directions_GxD, count * (SEQ_LEN - 1))
            rows_NxD = rows_NxD.astype(np.float16 if dtype == "float16" else np.float32)
            tokens_WxT = rng.integers(0, 1000, (count, SEQ_LEN))
            writer.add_shard(split, shard, rows_NxD, tokens_WxT, np.arange(document, document + count))
            document += count
    return writer.finish()


def store_of(
    directory: Path, rows_NxD: np.ndarray, tokens_WxT: np.ndarray, documents_W: np.ndarray, held_out: float = 1 / 3
) -> ActivationStore:
    """A store of the given rows. The last windows, a share of `held_out`, are held out."""
    description = SOURCES | {"hook": "resid_pre", "hook_name": "blocks.0.hook_resid_pre", "layer": 0}
    description |= {"seq_len": tokens_WxT.shape[1], "keep_first_position": False, "windows_hash": "none"}
    writer, cut = StoreWriter(directory, description), round(len(tokens_WxT) * (1 - held_out))
    for split, part in (("train", slice(cut)), ("held_out", slice(cut, None))):
        rows = rows_NxD.reshape(len(tokens_WxT), -1, rows_NxD.shape[1])[part].reshape(-1, rows_NxD.shape[1])
        writer.add_shard(split, 0, rows, tokens_WxT[part], documents_W[part])
    return writer.finish()
