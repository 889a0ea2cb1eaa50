"""Dictionaries of every architecture and setting, and what they compute, written out in numpy and float64."""

import jax.numpy as jnp
import numpy as np

from sae_jax.formats import Dictionary
from sae_jax.formats.saelens import new_cfg

D, F, K = 6, 16, 11  # more than the positive pre-activations of most rows
PER_FEATURE = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}
SETTINGS = [
    {},
    {"apply_b_dec_to_input": False},
    {"normalize_activations": "layer_norm"},
    {"normalize_activations": "constant_norm_rescale", "apply_b_dec_to_input": False},
]
RESCALED = [{"rescale_acts_by_decoder_norm": True}, {"rescale_acts_by_decoder_norm": True} | SETTINGS[1]]
CASES = [(a, s) for a in ("standard", "jumprelu", "topk", "abstopk", "gated") for s in SETTINGS]
CASES += [(a, s) for a in ("topk", "abstopk") for s in RESCALED]


def saelens_dictionary(architecture: str, dtype: str = "float32", **settings) -> Dictionary:
    rng = np.random.default_rng(3)
    tensors = {"W_enc": rng.standard_normal((D, F)), "W_dec": rng.standard_normal((F, D))}
    tensors |= {"b_dec": rng.standard_normal(D)}
    tensors |= {name: 0.5 * rng.standard_normal(F) for name in PER_FEATURE.get(architecture, ("b_enc",))}
    cfg = new_cfg(architecture, D, F, {"hook_name": "blocks.0.hook_mlp_out"}, K, **settings)
    dtype = jnp.bfloat16 if dtype == "bfloat16" else dtype
    return Dictionary("one", "saelens", cfg, {name: t.astype(dtype) for name, t in tensors.items()})


def saelens_in_numpy(dictionary: Dictionary, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(features, reconstruction) in float64, by the formulas of SAELens 6.54."""
    cfg, t = dictionary.cfg, {name: tensor.astype(np.float64) for name, tensor in dictionary.tensors.items()}
    scale, shift = np.ones((len(x), 1)), np.zeros((len(x), 1))
    if cfg["normalize_activations"] == "layer_norm":
        scale, shift = x.std(1, ddof=1, keepdims=True), x.mean(1, keepdims=True)
        x = (x - shift) / (scale + 1e-5)
    if cfg["normalize_activations"] == "constant_norm_rescale":
        scale = np.linalg.norm(x, axis=1, keepdims=True) / np.sqrt(x.shape[1])
        x = x / scale
    x = x - t["b_dec"] * cfg["apply_b_dec_to_input"]
    decoder_norm = np.linalg.norm(t["W_dec"], axis=1) if cfg.get("rescale_acts_by_decoder_norm") else 1.0
    if cfg["architecture"] == "gated":
        magnitude = np.maximum(x @ (t["W_enc"] * np.exp(t["r_mag"])) + t["b_mag"], 0)
        f = magnitude * (x @ t["W_enc"] + t["b_gate"] > 0)
    else:
        z = (x @ t["W_enc"] + t["b_enc"]) * decoder_norm
        f = np.maximum(z, 0) * (z > t.get("threshold", -np.inf))
        if "topk" in cfg["architecture"]:
            by = np.abs(z) if cfg["architecture"] == "abstopk" else z
            f = np.where(by >= np.sort(by, axis=1)[:, [-cfg["k"]]], z if cfg["architecture"] == "abstopk" else f, 0)
    return f, ((f / decoder_norm) @ t["W_dec"] + t["b_dec"]) * scale + shift
