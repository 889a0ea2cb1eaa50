"""A dictionary as stored on disk, in SAELens' terms, and its conversion to an `SAE`.

Tensors and configuration are kept as read, so that they can be written again bit for bit. Only `Dictionary.sae` changes
them, to fold settings into the weights.

Shapes: D width of the model, F features.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from harvest.errors import InputError
from sae_jax.formats.made_for import other_rows, settings_of
from sae_jax.models.base import SAE
from sae_jax.models.limited import limited
from sae_jax.models.registry import KINDS
from sae_jax.models.row_normalized import CENTER, ROW_NORMS, row_normalized

KIND_OF = {"standard": "relu", "jumprelu": "jump_relu", "topk": "topk", "abstopk": "abs_topk", "gated": "gated"}
BY_K = ("topk", "abstopk")
PER_FEATURE = {"jumprelu": ("b_enc", "threshold"), "gated": ("b_gate", "b_mag", "r_mag")}
SCALER = "activation_scaler.json"
SCALED = "expected_average_only_in"  # rows scaled by one number, which SAELens folds into the weights after training
NORMS = (SCALED, "none", *(norm for norm in ROW_NORMS if norm != CENTER))
TYPES = {"model_name": str, "hook_name": str, "dataset_path": str, "context_size": int, "prepend_bos": bool}
TYPES |= {"model_from_pretrained_kwargs": dict, "max_norm": float, "n_samples": int}


@dataclass(frozen=True)
class Dictionary:
    """A dictionary. `cfg` and the names of `tensors` are those of SAELens 6 and later.

    Tensors have the number format of the file. `log_sparsity_F` is log10(density + 1e-10) of each feature, if known.
    `scale` is the factor of the rows in training, if it was known apart from the weights and was folded into them.
    """

    name: str
    format: str  # "saelens", "saelens before 6" or "dictionary_learning"
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
    def head(self) -> int | None:
        """The number of the single attention head that it reads; None if it reads all of a hook."""
        head = self.cfg["metadata"].get("hook_head_index")
        return head if type(head) is int and head >= 0 else None

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
    def held_out(self) -> float | None:
        """The share of the documents of its text that it was not trained on; None if it is not recorded."""
        share = self.cfg["metadata"].get("held_out")
        return share if isinstance(share, float) and 0 < share <= 1 else None

    @property
    def n_samples(self) -> int | None:
        """The number of token windows that were harvested to train it; None if it is not recorded."""
        return self.cfg["metadata"].get("n_samples")

    @property
    def is_centered(self) -> bool:
        """Whether the weights of the model were centered, so that rows of a LayerNorm model have a mean of 0."""
        return bool(settings_of(self.cfg["metadata"]).get("center_writing_weights"))

    @property
    def row_norm(self) -> str:
        """How each row is normalized by itself: a key of ROW_NORMS, or "none"."""
        norm = self.cfg.get("normalize_activations", "none")
        if self.is_centered and norm != "layer_norm":  # which subtracts the mean itself
            return CENTER
        return norm if norm in ROW_NORMS else "none"

    @property
    def density_F(self) -> np.ndarray | None:
        """The share of held-out rows on which each feature fires, or None if the files do not record it."""
        return None if self.log_sparsity_F is None else np.maximum(10.0 ** np.float64(self.log_sparsity_F) - 1e-10, 0)

    def told(self) -> list[str]:
        """Notes on requirements of the training rows that are not met here, or met in another way."""
        notes = other_rows(self.cfg["metadata"])
        if self.scale is not None:
            notes.append(f"its rows were scaled by {self.scale:.6g}, which is folded into its weights here")
        elif self.cfg.get("normalize_activations") == SCALED:
            notes.append(
                f"its rows were scaled ({SCALED}), but the factor is unknown, because there is no {SCALER}: as in "
                "SAELens, it is assumed to be folded into the weights"
            )
        if self.is_centered:
            notes.append("the mean of each row was subtracted (center_writing_weights), which is done here, too")
        return notes

    @cached_property
    def sae(self) -> SAE:
        """The SAE in float32, for raw activations. It computes what SAELens computes from the same files."""
        architecture, tensors = self.cfg["architecture"], folded(self.cfg, self.tensors)
        with jax.ensure_compile_time_eval():  # these arrays are kept, also if a compiled function is the first to ask
            params: dict[str, Any] = {name: jnp.asarray(np.asarray(t, np.float32)) for name, t in tensors.items()}
            params["W_encT"] = params.pop("W_enc").T
            settings = {"k": jnp.int32(self.cfg["k"])} if architecture in BY_K else {}
        if architecture == "gated":
            params["b_enc"] = params.pop("b_gate")
        kind = KINDS[KIND_OF[architecture]]
        kind = kind if self.row_norm == "none" else row_normalized(kind, self.row_norm)
        if max_norm := self.cfg["metadata"].get("max_norm"):
            kind = limited(kind, max_norm)
        return kind(params, settings, k_max=self.cfg.get("k") or 0)

    def check(self, where: Path) -> None:
        """Raise InputError, naming `where`, for missing, misshapen, non-finite or unsupported content."""

        def need(ok: bool, trouble: str) -> None:
            if not ok:
                raise InputError(f"{where}: {trouble}")

        cfg = self.cfg
        architecture, norm = cfg.get("architecture"), cfg.get("normalize_activations", "none")
        for name, kind in TYPES.items():
            value = cfg["metadata"].get(name)
            need(
                value is None or type(value) is kind,
                f"its metadata has {name} {value!r}; it must be of type {kind.__name__}",
            )
        for name in ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm"):
            value = cfg.get(name, True)
            need(type(value) is bool, f"its configuration has {name} {value!r}; it must be true or false")
        need(type(norm) is str, f"normalize_activations {norm!r} must be a string")
        need(
            str(architecture) in KIND_OF,
            f"architecture {architecture!r} is not supported; these are: {', '.join(KIND_OF)}",
        )
        need(norm in NORMS, f"normalize_activations {norm!r} needs statistics of the rows that are not in these files")
        need(
            not (self.is_centered and norm == "constant_norm_rescale"), f"{norm} with centered weights is not supported"
        )
        counts = ("d_in", "d_sae", "k") if architecture in BY_K else ("d_in", "d_sae")
        for name in counts:
            value = cfg.get(name)
            need(
                type(value) is int and value > 0,
                f"its configuration has {name} {value!r}; it must be a whole number of 1 or more",
            )
        need(
            cfg.get("k", 1) <= cfg["d_sae"] or architecture not in BY_K,
            f"k {cfg.get('k')} is larger than d_sae {cfg['d_sae']}",
        )
        shapes = {"W_enc": (cfg["d_in"], cfg["d_sae"]), "W_dec": (cfg["d_sae"], cfg["d_in"]), "b_dec": (cfg["d_in"],)}
        shapes |= dict.fromkeys(PER_FEATURE.get(str(architecture), ("b_enc",)), (cfg["d_sae"],))
        for trouble, names in (("lacks", shapes.keys() - self.tensors), ("also has", self.tensors.keys() - shapes)):
            need(not names, f"a {architecture} dictionary has {', '.join(shapes)}; it {trouble} {', '.join(names)}")
        for name, tensor in self.tensors.items():
            need(
                tensor.shape == shapes[name],
                f"{name} has shape {tensor.shape}; by its configuration it must be {shapes[name]}",
            )
            is_float = jnp.issubdtype(tensor.dtype, jnp.floating)
            need(is_float, f"{name} is of type {tensor.dtype}; it must be of a floating-point type")
            with np.errstate(over="ignore"):
                finite = np.isfinite(tensor.astype(np.float32, copy=False)).all()
            need(bool(finite), f"{name} has values that are NaN or infinite in float32")
        if self.log_sparsity_F is not None:
            need(
                self.log_sparsity_F.shape == (cfg["d_sae"],),
                f"its sparsities have shape {self.log_sparsity_F.shape}, not ({cfg['d_sae']},)",
            )
            need(not np.isnan(self.log_sparsity_F).any(), "its sparsities have NaN values")


def unscaled(tensors: dict[str, np.ndarray], scale: float) -> dict[str, np.ndarray]:
    """Tensors for rows x, from those for scale · x, in float32: W_enc · scale, W_dec / scale, b_dec / scale."""
    by = {"W_enc": scale, "W_dec": 1 / scale, "b_dec": 1 / scale}
    return tensors | {
        name: (tensors[name].astype(np.float64) * factor).astype(np.float32)
        for name, factor in by.items()
        if name in tensors and jnp.issubdtype(tensors[name].dtype, jnp.floating)
    }


def folded(cfg: dict, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of the equivalent z = (x − b_dec) W_enc + b_enc, x̂ = f W_dec + b_dec; in float64 if changed.

    With apply_b_dec_to_input = False, SAELens computes z = x W_enc + b, so b_enc = b + b_dec W_enc. With
    rescale_acts_by_decoder_norm, it ranks and scales features by ‖W_dec‖, so this norm moves from W_dec to W_enc and
    b_enc. Its JumpReLU also applies a ReLU, so a threshold below 0 becomes 0.
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
