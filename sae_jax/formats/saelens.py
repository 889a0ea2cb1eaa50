"""SAELens' directories: `cfg.json`, `sae_weights.safetensors` and, where densities are known, `sparsity.safetensors`.

The layout written is that of version 6; the older one is read as SAELens 6 reads it (`handle_pre_6_0_config`).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from harvest.errors import InputError
from harvest.files import write_atomically
from sae_jax.formats.dictionary import BY_K, SCALED, SCALER, Dictionary, unscaled

VERSION = "6.54.12"
CFG, WEIGHTS, SPARSITY = "cfg.json", "sae_weights.safetensors", "sparsity.safetensors"
RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
    "from_pretrained_kwargs": "model_from_pretrained_kwargs",
}
METADATA: tuple[str, ...] = (
    "model_name",
    "model_class_name",
    "hook_name",
    "hook_head_index",
    "model_from_pretrained_kwargs",
)
METADATA += ("prepend_bos", "exclude_special_tokens", "neuronpedia_id", "context_size", "seqpos_slice", "dataset_path")
METADATA += ("sae_lens_training_version",)


def read(directory: Path) -> Dictionary:
    """What SAELens wrote, or `write`; not yet checked as a whole. Raises InputError for files that cannot be read."""
    as_written, tensors = read_json(directory / CFG), read_safetensors(directory / WEIGHTS)
    metadata = record_in(as_written, "metadata", directory / CFG)
    version = str(metadata.get("sae_lens_version") or as_written.get("sae_lens_version") or "0")
    is_new = version.split(".")[0].isdecimal() and int(version.split(".")[0]) >= 6
    cfg = {**as_written, "metadata": metadata} if is_new else upgraded(as_written, directory)
    scaling_F = tensors.pop("scaling_factor", None)  # for a time it was written, of ones
    if scaling_F is not None and not np.allclose(scaling_F, 1):
        raise InputError(f"{directory}: a finetuned scaling_factor that is not 1; SAELens 6 has none either")
    scale = None
    if cfg.get("normalize_activations") == SCALED and (directory / SCALER).exists():
        scale = scale_in(directory / SCALER)
        cfg, tensors = {**cfg, "normalize_activations": "none"}, unscaled(tensors, scale)
    sparsity = read_safetensors(directory / SPARSITY) if (directory / SPARSITY).exists() else {}
    log_sparsity_F = sparsity.get("sparsity")
    if log_sparsity_F is None and (directory / "stats.npz").exists():
        try:
            with np.load(directory / "stats.npz", allow_pickle=False) as stats:
                log_sparsity_F = np.log10(stats["density"] + 1e-10).astype(np.float32)
        except Exception as e:  # of the reader, whatever is damaged
            raise InputError(f"{directory / 'stats.npz'} cannot be read, it is damaged or not ours: {e}") from e
    name, wrote = directory.resolve().name, "saelens" if is_new else "saelens before 6"
    return Dictionary(name, wrote, cfg, tensors, log_sparsity_F, scale)


def write(dictionary: Dictionary, directory: Path) -> None:
    """Write SAELens' files; the tensors bit for bit. The directory is made where there is none."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in dictionary.tensors.items()}
    write_atomically(directory / WEIGHTS, lambda f: f.write(save(tensors)))
    if (log_sparsity_F := dictionary.log_sparsity_F) is not None:
        sparsity = np.ascontiguousarray(log_sparsity_F)
        write_atomically(directory / SPARSITY, lambda f: f.write(save({"sparsity": sparsity})))
    cfg = {"dtype": str(tensors["W_enc"].dtype), "device": "cpu", **dictionary.cfg}
    write_atomically(directory / CFG, lambda f: f.write((json.dumps(cfg, indent=1) + "\n").encode()))


def new_cfg(architecture: str, d_in: int, d_sae: int, metadata: dict, k: int | None = None, **settings: Any) -> dict:
    """A cfg.json of version 6; `settings` are those that differ from its defaults."""
    cfg = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    if architecture in BY_K:
        cfg |= {"k": k, "rescale_acts_by_decoder_norm": False}
    versions = {"sae_lens_version": VERSION, "sae_lens_training_version": None}  # its reader looks for 6 or later
    return cfg | settings | {"metadata": versions | metadata}


def upgraded(cfg: dict, where: Path) -> dict:
    """A cfg.json of before version 6 as one of version 6."""
    cfg = {RENAMED.get(name, name): value for name, value in cfg.items()}
    architecture, activation = cfg.get("architecture", "standard"), cfg.get("activation_fn", "relu")
    k = cfg.get("k", record_in(cfg, "activation_fn_kwargs", where / CFG).get("k"))
    if activation == "topk" and k is not None:
        architecture = "topk"
    elif activation not in ("relu", None):
        raise InputError(f"{where}: activation_fn {activation!r}; known are relu, and topk with its k")
    normalize = cfg.get("normalize_activations") or "none"
    settings = {
        "dtype": str(cfg.get("dtype", "float32")).removeprefix("torch."),
        "apply_b_dec_to_input": cfg.get("apply_b_dec_to_input", True),
        "normalize_activations": "expected_average_only_in" if normalize is True else normalize,
        "reshape_activations": "hook_z" if "hook_z" in str(cfg.get("hook_name")) else "none",
    }
    if architecture in BY_K:
        settings["rescale_acts_by_decoder_norm"] = cfg.get("rescale_acts_by_decoder_norm", False)
    metadata = {"prepend_bos": True} | {name: cfg[name] for name in METADATA if name in cfg}
    metadata |= record_in(cfg, "metadata", where / CFG) | {"sae_lens_version": VERSION}
    return new_cfg(architecture, cfg.get("d_in", 0), cfg.get("d_sae", 0), metadata, k, **settings)


def read_json(path: Path) -> dict:
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as e:
        raise InputError(f"{path} cannot be read: {e}") from e
    if not isinstance(record, dict):
        raise InputError(f"{path} holds no configuration: {str(record)[:40]}")
    return record


def record_in(config: dict, name: str, where: Path) -> dict:
    """A part of a configuration, empty where it is not there."""
    if not isinstance(part := config.get(name) or {}, dict):
        raise InputError(f"{where}: its {name} is {part!r:.40}; a record is needed")
    return part


def scale_in(path: Path) -> float:
    """What SAELens multiplied rows by. Raises InputError for what is no positive number."""
    scale: Any = read_json(path).get("scaling_factor")
    if type(scale) not in (int, float) or not (math.isfinite(scale) and scale > 0):
        raise InputError(f"{path}: its scaling_factor is {scale!r}; a positive number is needed")
    return float(scale)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Every tensor; bfloat16, too."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except Exception as e:  # of the reader, whatever is damaged
        raise InputError(f"{path} cannot be read, it is missing or damaged: {e}") from e
