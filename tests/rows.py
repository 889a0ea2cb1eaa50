"""Stores of rows made from sparse combinations of random directions, for tests that need no language model."""

from pathlib import Path

import numpy as np

from harvest.store import ActivationStore, StoreWriter

SEQ_LEN = 9  # 8 rows a window: the first position is left out


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
) -> ActivationStore:
    rng = np.random.default_rng(seed)
    directions_GxD = rng.standard_normal((2 * d_model, d_model))
    description = {
        "model": {"asked": "none", "location": "none", "fell_back": False, "fingerprint": "none"},
        "dataset": {"asked": "none", "location": "none", "fell_back": False, "fingerprint": "none"},
        "hook": "resid_pre",
        "hook_name": f"blocks.{layer}.hook_resid_pre",
        "layer": layer,
        "seq_len": SEQ_LEN,
        "keep_first_position": False,
        "dtype": dtype,
        "d_model": d_model,
        **dict.fromkeys(("windows_hash", "weights_hash", "tokenizer_hash"), "none"),
    }
    writer = StoreWriter(directory, description)
    document = 0
    for split, share in (("train", 0.8), ("held_out", 0.2)):
        for shard, count in enumerate(np.full(shards, int(windows * share) // shards)):
            rows_NxD = sparse_rows(rng, directions_GxD, count * (SEQ_LEN - 1)).astype(dtype)
            tokens_WxT = rng.integers(0, 1000, (count, SEQ_LEN))
            writer.add_shard(split, shard, rows_NxD, tokens_WxT, np.arange(document, document + count))
            document += count
    return writer.finish()
