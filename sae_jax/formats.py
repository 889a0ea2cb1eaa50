"""Dictionaries on disk in SAELens' layout: `cfg.json` and `sae_weights.safetensors`, to be used on raw activations.

Shapes: D width of the model, F features.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save

from harvest.errors import InputError
from harvest.store import write_atomically, write_json
from sae_jax.grid import Member
from sae_jax.kinds import KINDS
from sae_jax.sae import SAE

READ_AS = {"standard": "relu", "jumprelu": "jump_relu", "topk": "topk", "gated": "gated", "abs_topk": "abs_topk"}
BY_K = ("topk", "abs_topk")
SAELENS_VERSION = "6.54.12"  # the layout written here is that of this version; its reader asks for 6 or later


def fold_normalization(tensors: dict, shift_D: np.ndarray, scale_D: np.ndarray) -> dict[str, np.ndarray]:
    """Trained parameters as tensors for raw rows, x' = (x − shift) / scale being those trained on. In float64.

    W_enc (the transpose of W_encT) / scale, W_dec · scale, b_dec · scale + shift; the rest stays, since z stays.
    """
    tensors = {name: np.asarray(value, np.float64) for name, value in tensors.items()}
    tensors["W_enc"] = tensors.pop("W_encT").T / scale_D[:, None]
    tensors["W_dec"] = tensors["W_dec"] * scale_D
    tensors["b_dec"] = tensors["b_dec"] * scale_D + shift_D
    return {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}


def save_member(directory: Path, member: Member, tensors: dict[str, np.ndarray], manifest: dict) -> None:
    """Write a member trained on the store that `manifest` describes; `tensors` take raw activations."""
    directory.mkdir(parents=True, exist_ok=True)
    d_model, hidden_dim = tensors["W_enc"].shape
    cfg = {
        "architecture": KINDS[member.activation].architecture,
        "d_in": d_model,
        "d_sae": hidden_dim,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": SAELENS_VERSION,
            "sae_lens_training_version": None,
            "model_name": manifest["model"]["location"],
            "model_class_name": "HookedTransformer",
            "hook_name": manifest["hook_name"],
            "hook_head_index": None,
            "context_size": manifest["seq_len"],
            "prepend_bos": False,
            "model_from_pretrained_kwargs": {},
            "dataset_path": manifest["dataset"]["location"],
        },
    }
    if cfg["architecture"] in BY_K:
        cfg |= {"k": member.k, "rescale_acts_by_decoder_norm": False}
    write_json(directory / "cfg.json", cfg)
    write_atomically(directory / "sae_weights.safetensors", lambda f: f.write(save(tensors)))


def load_member(directory: Path) -> SAE:
    """Read what `save_member` wrote. Raises InputError where a file or tensor is missing or of another shape."""
    try:
        cfg = json.loads((directory / "cfg.json").read_text())
        tensors = load_file(directory / "sae_weights.safetensors")
    except Exception as e:
        raise InputError(f"{directory} is no dictionary that can be read: {e}") from e
    activation = READ_AS.get(architecture := cfg.get("architecture"))
    if activation is None:
        raise InputError(f"{directory}: architecture {architecture!r}; known are {', '.join(READ_AS)}")
    d, f = cfg["d_in"], cfg["d_sae"]
    per_feature = {"jumprelu": ("b_enc", "threshold"), "gated": ("b_gate", "b_mag", "r_mag")}.get(
        architecture, ("b_enc",)
    )
    shapes = {"W_enc": (d, f), "W_dec": (f, d), "b_dec": (d,)} | dict.fromkeys(per_feature, (f,))
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != shapes:
        raise InputError(f"{directory}/sae_weights.safetensors holds {found}; expected {shapes}")
    arrays: dict[str, Any] = {name: jnp.asarray(tensor) for name, tensor in tensors.items()}
    arrays["W_encT"] = arrays.pop("W_enc").T
    if architecture == "gated":
        arrays["b_enc"] = arrays.pop("b_gate")
    settings = {"k": jnp.int32(cfg["k"])} if architecture in BY_K else {}
    return SAE(activation, arrays, settings, k_max=cfg.get("k", 0))
