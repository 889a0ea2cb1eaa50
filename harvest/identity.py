"""Comparison of activation stores: whether two stores hold the same rows. Imports neither torch nor jax.

Rows are compared by their meaning (model, text, hook) and their values, not by paths or versions. With another version
of torch or another processor, the same model on the same text gives rows that differ by rounding. A few sums over the
rows distinguish them from other rows.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from functools import lru_cache
from hashlib import shake_128
from pathlib import Path
from typing import Any

import numpy as np

from harvest.store import ActivationStore, Split

MODEL = ("fingerprint", "weights_hash", "tokenizer_hash")
MEANING = ("control", "windows_hash", "hook_name", "seq_len", "keep_first_position", "dtype", "d_model")
IN_WORDS = {"windows_hash": "token windows", "model": "model"}
SAMPLED = 32  # rows of a split
# The largest rounding, relative to the mean norm of the rows: of the rows themselves, and of the model that gave them.
# With another implementation of attention, rows of 3 to 4 layers in bfloat16 are up to .02 apart, in float16 .0025.
ROUNDING = {"float16": 2**-10, "float32": 2**-13, "bfloat16": 2**-7, "int8": 2**-7}
MODEL_ROUNDING = {"float32": 2**-13, "float16": 2**-8, "bfloat16": 2**-5}


@lru_cache(1)  # opening a run's store asks for it twice
def identity(store: ActivationStore) -> dict[str, Any]:
    """The facts by which a run recognizes the rows that it was trained on."""
    manifest, mean_norm = store.manifest, store.manifest["mean_norm"]
    signs_D = _signs(store.d_model)
    files = [facts["crc32"] for path, facts in store.files() if path.name.startswith(("rows", "scales"))]
    return {
        **{name: manifest.get(name) for name in MEANING},
        **({"model_dtype": manifest["model_dtype"]} if "model_dtype" in manifest else {}),  # it is float32 otherwise
        "model": {name: manifest["model"].get(name, manifest.get(name)) for name in MODEL},
        "rows": len(store.train),
        "held_out_rows": len(store.held_out),
        "rows_crc32": zlib.crc32(np.array(files, "<u4").tobytes()),
        "sums": {
            "rows": [_sampled(split, signs_D) for split in (store.train, store.held_out)],
            "mean": float(store.mean @ signs_D),
            "deviation": float(np.sqrt(np.square(store.std).sum())),
            "length": mean_norm,
        },
    }


def meaning(identified: Mapping[str, Any]) -> str:
    """A short hash of what the rows of this `identity` are, the same on every machine."""
    facts = {name: identified[name] for name in (*MEANING, "rows", "held_out_rows")}
    facts |= {"model": identified["model"]["weights_hash"]}
    facts |= {"model_dtype": identified["model_dtype"]} if "model_dtype" in identified else {}
    return shake_128(json.dumps(facts, sort_keys=True).encode()).hexdigest(4)


def difference(trained: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The differences between the rows of two identities, in words; "" if there are none or only rounding."""
    names = ("rows", "held_out_rows", *MEANING)
    other = [f"{IN_WORDS.get(n, n)} {trained[n]}, not {here[n]}" for n in names if trained[n] != here[n]]
    model_dtype, instead = (identified.get("model_dtype", "float32") for identified in (trained, here))
    if model_dtype != instead:
        other.append(f"the model ran in {model_dtype}, not {instead}")
    elif not same_model(trained["model"], here["model"]):
        other.append(f"the model's weights {trained['model']['weights_hash']}, not {here['model']['weights_hash']}")
    if other or trained["rows_crc32"] == here["rows_crc32"]:
        return ", ".join(other)
    apart = distance(trained, here)
    if max(apart.values()) <= max(ROUNDING[trained["dtype"]], MODEL_ROUNDING[model_dtype]):
        return ""
    return ", ".join(f"the {name} by {share:.2%} of the mean norm of the rows" for name, share in apart.items())


def rounding(trained: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """The rounding distance of rows without a `difference`, in words; "" if they are equal byte for byte."""
    if trained["rows_crc32"] == here["rows_crc32"]:
        return ""
    return f"the rows differ by rounding ({max(distance(trained, here).values()):.1e} of their mean norm)"


def distance(trained: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, float]:
    """How far two identities are apart in sampled rows (root mean square), mean and deviation.

    All are relative to the mean norm of a row.
    """
    old, new = trained["sums"], here["sums"]
    rows = np.subtract(np.concatenate(old["rows"]), np.concatenate(new["rows"]))
    apart = {"rows": float(np.sqrt(np.square(rows).mean()))}
    apart |= {name: abs(old[name] - new[name]) for name in ("mean", "deviation")}
    return {name: value / old["length"] for name, value in apart.items()}


def same_model(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two models have the same files, or the same weights and vocabulary.

    Files are compared first because versions of TransformerLens name and divide weights differently.
    """
    if one["fingerprint"] == other["fingerprint"]:
        return True
    return all(one[name] == other[name] for name in MODEL[1:])


def matching_store(trained: Mapping[str, Any], cache_dir: Path) -> ActivationStore | None:
    """The store of a run's record of it, if it is in a cache. Its model and text have the names that the run knows.

    It is None if it is unfinished or its rows have a `difference` from those that the run was trained on.
    """
    directory = cache_dir / "activations" / trained["directory"]
    if not (directory / "manifest.json").exists():
        return None
    store = ActivationStore(directory)
    if difference(trained["identity"], identity(store)):
        return None
    store.rename(trained["model"], trained["dataset"])
    return store


def _sampled(split: Split, signs_D: np.ndarray) -> list[float]:
    """Products of evenly spaced rows with a vector of ±1.

    If a vector is added to a row, its product changes by the length of that vector, in the root mean square.
    """
    rows_N = np.unique(np.linspace(0, len(split) - 1, SAMPLED).astype(int)) if len(split) else np.empty(0, int)
    return (split[rows_N].astype(np.float64) @ signs_D).tolist() if len(rows_N) else []


def _signs(d_model: int) -> np.ndarray:
    """A fixed vector of ±1 [D] that does not depend on library versions."""
    bits = np.frombuffer(shake_128(b"rows").digest(d_model // 8 + 1), np.uint8)
    return np.unpackbits(bits)[:d_model] * 2.0 - 1.0
