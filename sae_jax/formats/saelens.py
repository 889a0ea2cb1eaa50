"""SAELens' directories: `cfg.json`, `sae_weights.safetensors` and, if densities are known, `sparsity.safetensors`.

The layout of version 6 is written. The older one is read as SAELens 6 reads it (`handle_pre_6_0_config`). The header of
the weights written here has checksums of the tensors and of cfg.json. SAELens drops the checksums when it writes the
dictionary again.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from harvest.errors import InputError
from harvest.files import CHECKSUM, array_checksum, parse_json, read_arrays, record_checksum, write_atomically
from sae_jax.formats.dictionary import BY_K, SCALED, SCALER, Dictionary, unscaled
from sae_jax.run_directory import WRITTEN_AGAIN, run_of

VERSION = "6.54.12"
ANOTHER_COPY = "export it again, or use another copy"
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
    """Read what SAELens or `write` wrote, without a check of the whole. Raises InputError for unreadable files."""
    in_a_run = run_of(directory) is not None
    advice = WRITTEN_AGAIN if in_a_run else ANOTHER_COPY
    as_written = parse_json(directory / CFG, advice)
    tensors, checksums = read_safetensors(directory / WEIGHTS, advice)
    if checksums[1:] not in ([], [str(record_checksum(as_written))]):
        raise InputError(f"{directory / CFG} is damaged or was edited (its checksum differs): {advice}")
    if in_a_run and len(checksums) != 2:
        raise InputError(f"{directory / WEIGHTS} has no checksum, so it may be damaged: {advice}")
    metadata = record_in(as_written, "metadata", directory / CFG)
    version = str(metadata.get("sae_lens_version") or as_written.get("sae_lens_version") or "0")
    is_new = version.split(".")[0].isdecimal() and int(version.split(".")[0]) >= 6
    cfg = {**as_written, "metadata": metadata} if is_new else upgraded(as_written, directory)
    scaling_F = tensors.pop("scaling_factor", None)  # some versions wrote it, with ones only
    if scaling_F is not None and not np.allclose(scaling_F, 1):
        raise InputError(
            f"{directory}: its scaling_factor is not 1, which neither this program nor SAELens 6 supports: fold it "
            "into the other tensors"
        )
    scale = None
    if cfg.get("normalize_activations") == SCALED and (directory / SCALER).exists():
        scale = scale_in(directory / SCALER)
        cfg, tensors = {**cfg, "normalize_activations": "none"}, unscaled(tensors, scale)
    sparsity = read_safetensors(directory / SPARSITY, advice)[0] if (directory / SPARSITY).exists() else {}
    log_sparsity_F = sparsity.get("sparsity")
    if log_sparsity_F is None and (directory / "stats.npz").exists():
        try:
            density_F = read_arrays(directory / "stats.npz", advice)["density"]
            log_sparsity_F = np.log10(density_F + 1e-10).astype(np.float32)
        except (InputError, KeyError):
            if checksums:  # this project wrote the weights, so the file is ours and not one of the same name
                raise
    name, wrote = directory.resolve().name, "saelens" if is_new else "saelens before 6"
    return Dictionary(name, wrote, cfg, tensors, log_sparsity_F, scale)


def write(dictionary: Dictionary, directory: Path) -> None:
    """Write SAELens' files, with the tensors bit for bit. The directory is created if needed."""
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in dictionary.tensors.items()}
    cfg = {"dtype": str(tensors["W_enc"].dtype), "device": "cpu", **dictionary.cfg}
    write_safetensors(directory / WEIGHTS, tensors, str(record_checksum(json.loads(json.dumps(cfg)))))
    if (log_sparsity_F := dictionary.log_sparsity_F) is not None:
        write_safetensors(directory / SPARSITY, {"sparsity": np.ascontiguousarray(log_sparsity_F)})
    write_atomically(directory / CFG, lambda f: f.write((json.dumps(cfg, indent=1) + "\n").encode()))


def new_cfg(architecture: str, d_in: int, d_sae: int, metadata: dict, k: int | None = None, **settings: Any) -> dict:
    """The content of a cfg.json of version 6. `settings` overrides its defaults."""
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
    versions = {"sae_lens_version": VERSION, "sae_lens_training_version": None}  # its reader needs 6 or later
    return cfg | settings | {"metadata": versions | metadata}


def upgraded(cfg: dict, where: Path) -> dict:
    """The content of a cfg.json before version 6, converted to version 6."""
    cfg = {RENAMED.get(name, name): value for name, value in cfg.items()}
    architecture, activation = cfg.get("architecture", "standard"), cfg.get("activation_fn", "relu")
    k = cfg.get("k", record_in(cfg, "activation_fn_kwargs", where / CFG).get("k"))
    if activation == "topk" and k is not None:
        architecture = "topk"
    elif activation not in ("relu", None):
        raise InputError(
            f"{where}: activation_fn {activation!r} is not supported: use a dictionary with relu, or topk with a k"
        )
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


def record_in(config: dict, name: str, where: Path) -> dict:
    """The object `name` of a configuration; empty if absent. Raises InputError if it is no object."""
    if not isinstance(part := config.get(name) or {}, dict):
        raise InputError(f"{where}: its {name} is {part!r:.40}; it must be an object: {ANOTHER_COPY}")
    return part


def scale_in(path: Path) -> float:
    """The factor by which SAELens multiplied rows. Raises InputError if it is not a positive number."""
    scale: Any = parse_json(path, ANOTHER_COPY).get("scaling_factor")
    if type(scale) not in (int, float) or not (math.isfinite(scale) and scale > 0):
        raise InputError(f"{path}: its scaling_factor is {scale!r}; it must be a positive number: {ANOTHER_COPY}")
    return float(scale)


def read_safetensors(path: Path, advice: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """(all tensors, including bfloat16 ones; the checksums of `write_safetensors`, empty if another program wrote it).

    Raises InputError if the first checksum is not that of the tensors.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
            checksums = (file.metadata() or {}).get(CHECKSUM, "").split()
    except Exception as e:  # the reader raises anything if the file is damaged
        raise InputError(f"{path} cannot be read because it is missing or damaged ({e}): {advice}") from e
    if checksums[:1] not in ([], [tensors_checksum(tensors)]):
        raise InputError(f"{path} is damaged (its checksum differs): {advice}")
    return tensors, checksums


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], *checksums: str) -> None:
    """Write tensors, with their checksum and further ones in one header entry, since the order of entries is random."""
    content = save(tensors, metadata={CHECKSUM: " ".join([tensors_checksum(tensors), *checksums])})
    write_atomically(path, lambda file: file.write(content))


def tensors_checksum(tensors: dict[str, np.ndarray]) -> str:
    crc32 = 0
    for name in sorted(tensors):
        crc32 = array_checksum(tensors[name], zlib.crc32(name.encode(), crc32))
    return str(crc32)
