"""Conversion of trained members to a `Dictionary` for raw activations."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from harvest.request import Site
from harvest.sources import BUNDLED
from sae_jax.formats.dictionary import Dictionary
from sae_jax.formats.saelens import new_cfg
from sae_jax.members import Member
from sae_jax.models.registry import KINDS


def fold_normalization(
    tensors: dict, shift_D: np.ndarray, scale_D: np.ndarray, metric_D: np.ndarray
) -> dict[str, np.ndarray]:
    """Tensors for raw rows x, from parameters that were trained on (x − shift) / scale. Computed in float64.

    W_enc (the transpose of W_encT) is divided by scale. W_dec, which reconstructs (x − shift) / scale · metric, is
    multiplied by scale / metric, and b_dec becomes b_dec · scale / metric + shift. The other tensors stay the same,
    because z stays the same.
    """
    tensors = {name: np.asarray(value, np.float64) for name, value in tensors.items()}
    tensors["W_enc"] = tensors.pop("W_encT").T / scale_D[:, None]
    tensors["W_dec"] = tensors["W_dec"] * (scale_D / metric_D)
    tensors["b_dec"] = tensors["b_dec"] * (scale_D / metric_D) + shift_D
    return {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}


def trained_dictionary(member: Member, tensors: dict[str, np.ndarray], manifest: dict) -> Dictionary:
    """The dictionary of a member trained on the store that `manifest` describes; `tensors` are for raw rows."""
    metadata = {
        "member": member.id,
        "model_name": portable_name(manifest["model"]["location"]),
        "model_class_name": "HookedTransformer",
        "hook_name": manifest["hook_name"],
        "hook_head_index": Site(member.layer, member.hook).head,
        "context_size": manifest["seq_len"] + len(manifest.get("bos", ())),
        "prepend_bos": "bos" in manifest,
        "model_from_pretrained_kwargs": {},
        "dataset_path": portable_name(manifest["dataset"]["location"]),
    }
    metadata |= {"control": control} if (control := manifest.get("control")) else {}
    metadata |= {name: manifest[name] for name in ("max_norm", "held_out", "n_samples") if manifest.get(name)}
    architecture, (d_in, d_sae) = KINDS[member.activation].architecture, tensors["W_enc"].shape
    # In SAELens, heads are side by side only with this setting.
    whole = metadata["hook_name"].endswith("hook_z") and metadata["hook_head_index"] is None
    settings = {"reshape_activations": "hook_z"} if whole else {}
    return Dictionary(member.id, "saelens", new_cfg(architecture, d_in, d_sae, metadata, member.k, **settings), tensors)


def portable_name(location: str) -> str:
    """A name that is valid on other machines, too: bundled files get the name "bundled" instead of a path."""
    return "bundled" if Path(location).is_relative_to(BUNDLED) else location
