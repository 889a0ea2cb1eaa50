"""A dictionary as it was written, in SAELens' terms, whatever wrote it; and the same as an `SAE` for use.

What is written stays as it is read, so that it can be written again bit for bit; only `Dictionary.sae` folds.

Shapes: D width of the model, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from harvest.errors import InputError
from sae_jax.formats.made_for import other_rows, settings_of
from sae_jax.models.base import SAE
from sae_jax.models.registry import KINDS
from sae_jax.models.row_normalized import CENTER, ROW_NORMS, row_normalized

KIND_OF = {"standard": "relu", "jumprelu": "jump_relu", "topk": "topk", "abstopk": "abs_topk", "gated": "gated"}
BY_K = ("topk", "abstopk")
PER_FEATURE = {"jumprelu": ("b_enc", "threshold"), "gated": ("b_gate", "b_mag", "r_mag")}
SCALER = "activation_scaler.json"
SCALED = "expected_average_only_in"  # rows times one number, which SAELens folds into the weights when it has trained
NORMS = (SCALED, "none", *(norm for norm in ROW_NORMS if norm != CENTER))
TYPES = {"model_name": str, "hook_name": str, "dataset_path": str, "context_size": int, "prepend_bos": bool}
TYPES |= {"model_from_pretrained_kwargs": dict}


@dataclass(frozen=True)
class Dictionary:
    """`cfg` as SAELens (6 and later) writes it; `tensors` by its names, in the file's number format.

    `log_sparsity_F`: log10(density + 1e-10) of each feature, where it is known. `scale`: what rows were multiplied by
    when it was trained, where that lay beside the weights and has been folded into them as they were read.
    """

    name: str
    format: str  # what wrote it: "saelens", "saelens before 6", "dictionary_learning"
    cfg: dict[str, Any]
    tensors: dict[str, np.ndarray]
    log_sparsity_F: np.ndarray | None = None
    scale: float | None = None

    @property
    def d_in(self) -> int:
        return self.cfg["d_in"]

    @property
    def d_sae(self) -> int:
        return self.cfg["d_sae"]

    @property
    def model_name(self) -> str | None:
        return self.cfg["metadata"].get("model_name")

    @property
    def hook_name(self) -> str | None:
        return self.cfg["metadata"].get("hook_name")

    @property
    def context_size(self) -> int | None:
        return self.cfg["metadata"].get("context_size")

    @property
    def dataset_path(self) -> str | None:
        return self.cfg["metadata"].get("dataset_path")

    @property
    def prepend_bos(self) -> bool | None:
        return self.cfg["metadata"].get("prepend_bos")

    @property
    def is_centered(self) -> bool:
        """Whether its model's weights were centered, by which a LayerNorm model's rows have a mean of 0."""
        return bool(settings_of(self.cfg["metadata"]).get("center_writing_weights"))

    def told(self) -> list[str]:
        """Sentences on what it asks of its rows that is not done here, or done in another way."""
        told = other_rows(self.cfg["metadata"])
        if self.scale is not None:
            told.append(f"its scale of rows, {self.scale:.6g}, lay beside it and is folded into its weights")
        elif self.cfg.get("normalize_activations") == SCALED:
            told.append(
                f"its rows were scaled ({SCALED}), and no {SCALER} beside it says by what: it is used as if "
                "that were folded into its weights, as SAELens does"
            )
        if self.is_centered:
            told.append("its rows had their mean taken away (center_writing_weights), which is done here, too")
        return told

    @cached_property
    def sae(self) -> SAE:
        """In float32, for raw activations; what SAELens computes from the same files."""
        architecture, tensors = self.cfg["architecture"], folded(self.cfg, self.tensors)
        params: dict[str, Any] = {name: jnp.asarray(np.asarray(t, np.float32)) for name, t in tensors.items()}
        params["W_encT"] = params.pop("W_enc").T
        if architecture == "gated":
            params["b_enc"] = params.pop("b_gate")
        settings = {"k": jnp.int32(self.cfg["k"])} if architecture in BY_K else {}
        kind = KINDS[KIND_OF[architecture]]
        norm = self.cfg.get("normalize_activations", "none")
        if self.is_centered and norm != "layer_norm":  # which takes the mean away itself
            norm = CENTER
        kind = row_normalized(kind, norm) if norm in ROW_NORMS else kind
        return kind(params, settings, k_max=self.cfg.get("k") or 0)

    def check(self, where: Path) -> None:
        """Raises InputError, naming `where`, for what is missing, of another shape, not finite or not ours to use."""

        def need(ok: bool, trouble: str) -> None:
            if not ok:
                raise InputError(f"{where}: {trouble}")

        cfg = self.cfg
        architecture, norm = cfg.get("architecture"), cfg.get("normalize_activations", "none")
        for name, kind in TYPES.items():
            value = cfg["metadata"].get(name)
            need(
                value is None or type(value) is kind, f"its metadata has {name} {value!r}; a {kind.__name__} is needed"
            )
        for name in ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm"):
            value = cfg.get(name, True)
            need(type(value) is bool, f"its configuration has {name} {value!r}; true or false is needed")
        need(type(norm) is str, f"normalize_activations {norm!r}: a text is needed")
        need(
            str(architecture) in KIND_OF, f"architecture {architecture!r} is not known; known are {', '.join(KIND_OF)}"
        )
        need(norm in NORMS, f"normalize_activations {norm!r}: what was done to its rows is not in these files")
        need(not (self.is_centered and norm == "constant_norm_rescale"), f"{norm} of centered rows is not known here")
        counts = ("d_in", "d_sae", "k") if architecture in BY_K else ("d_in", "d_sae")
        for name in counts:
            value = cfg.get(name)
            need(
                type(value) is int and value > 0,
                f"its configuration has {name} {value!r}; a whole number of 1 or more is needed",
            )
        need(cfg.get("k", 1) <= cfg["d_sae"] or architecture not in BY_K, f"k {cfg.get('k')} is over {cfg['d_sae']}")
        shapes = {"W_enc": (cfg["d_in"], cfg["d_sae"]), "W_dec": (cfg["d_sae"], cfg["d_in"]), "b_dec": (cfg["d_in"],)}
        shapes |= dict.fromkeys(PER_FEATURE.get(str(architecture), ("b_enc",)), (cfg["d_sae"],))
        for trouble, names in (("lacks", shapes.keys() - self.tensors), ("has besides", self.tensors.keys() - shapes)):
            need(not names, f"a {architecture} dictionary has {', '.join(shapes)}; it {trouble} {', '.join(names)}")
        for name, tensor in self.tensors.items():
            need(tensor.shape == shapes[name], f"{name} is {tensor.shape}; its configuration says {shapes[name]}")
            is_float = jnp.issubdtype(tensor.dtype, jnp.floating)
            need(is_float, f"{name} is of {tensor.dtype}; floating-point numbers are needed")
            with np.errstate(over="ignore"):
                finite = np.isfinite(tensor.astype(np.float32, copy=False)).all()
            need(bool(finite), f"{name} has values that are no numbers in float32 (NaN or infinite)")
        if self.log_sparsity_F is not None:
            need(self.log_sparsity_F.shape == (cfg["d_sae"],), f"its sparsities are {self.log_sparsity_F.shape}")
            need(not np.isnan(self.log_sparsity_F).any(), "its sparsities have values that are no numbers (NaN)")


def unscaled(tensors: dict[str, np.ndarray], scale: float) -> dict[str, np.ndarray]:
    """The tensors for rows x of a dictionary of scale · x, in float32: W_enc · scale, W_dec / scale, b_dec / scale."""
    by = {"W_enc": scale, "W_dec": 1 / scale, "b_dec": 1 / scale}
    return tensors | {
        name: (tensors[name].astype(np.float64) * factor).astype(np.float32)
        for name, factor in by.items()
        if name in tensors and jnp.issubdtype(tensors[name].dtype, jnp.floating)
    }


def folded(cfg: dict, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of our form, z = (x − b_dec) W_enc + b_enc with features in units of their decoder row. In float64.

    apply_b_dec_to_input = False is z = x W_enc + b: then b_enc = b + b_dec W_enc. rescale_acts_by_decoder_norm ranks
    and scales features by ‖W_dec‖: then this norm is in W_enc and b_enc, and not in W_dec. SAELens' JumpReLU has a ReLU
    besides: a threshold below 0 is one of 0.
    """
    if cfg["architecture"] == "jumprelu":
        tensors = {**tensors, "threshold": np.maximum(tensors["threshold"], 0)}
    raw, rescale = not cfg.get("apply_b_dec_to_input", True), cfg.get("rescale_acts_by_decoder_norm", False)
    if not (raw or rescale):
        return tensors
    tensors = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    if raw:
        shift_F = tensors["b_dec"] @ tensors["W_enc"]
        scales = {"b_mag": np.exp(tensors["r_mag"])} if "r_mag" in tensors else {}
        for name in tensors.keys() & {"b_enc", "b_gate", "b_mag"}:
            tensors[name] = tensors[name] + shift_F * scales.get(name, 1.0)
    if rescale:
        norm_F = np.linalg.norm(tensors["W_dec"], axis=1)
        tensors |= {"W_enc": tensors["W_enc"] * norm_F, "b_enc": tensors["b_enc"] * norm_F}
        tensors["W_dec"] = tensors["W_dec"] / np.where(norm_F > 0, norm_F, 1.0)[:, None]
    return tensors
