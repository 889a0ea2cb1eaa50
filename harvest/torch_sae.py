"""A sparse autoencoder as a torch module.

Shapes: D width of the activations, F features; `...` stands for any leading dimensions, including none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import numpy as np
import torch

from harvest.errors import InputError

Method = Callable[..., torch.Tensor]


def in_format_of_weights(method: Method) -> Method:
    """Run a method in the number format of the weights. The result has the format of the rows, if they are floats."""

    @wraps(method)
    def converting(self: TorchSAE, rows: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        given = [dense(tensor).to(self.W_enc.dtype) for tensor in (rows, *others)]
        with torch.autocast(rows.device.type, enabled=False):
            result = method(self, *given)
        return result.to(rows.dtype) if rows.is_floating_point() else result

    return converting


class TorchSAE(torch.nn.Module):
    """f = act((x − b_dec) W_enc + b_enc), x̂ = f W_dec + b_dec, on raw activations.

    `tensors` become float32 parameters, with SAELens' names and shapes. `cfg` is a configuration in SAELens' terms, of
    which the architecture, k and the name of the hook are read. `norm` says how each row is normalized by itself. The
    positions of a window before `first_position` were not trained on, nor were rows with a norm over `max_norm`: these
    have no features, and are their own reconstruction.
    """

    W_enc: torch.nn.Parameter
    W_dec: torch.nn.Parameter
    b_dec: torch.nn.Parameter
    b_enc: torch.nn.Parameter  # all architectures but gated
    b_gate: torch.nn.Parameter  # gated, as the next two
    b_mag: torch.nn.Parameter
    r_mag: torch.nn.Parameter
    threshold: torch.nn.Parameter  # jumprelu

    def __init__(
        self, cfg: Mapping[str, Any], tensors: Mapping[str, np.ndarray], norm: str = "none", first_position: int = 0
    ):
        super().__init__()
        self.cfg, self.norm, self.first_position = cfg, norm, first_position
        with torch.inference_mode(False):  # tensors that are made in inference mode could never be used with gradients
            for name, values in tensors.items():
                self.register_parameter(name, torch.nn.Parameter(torch.from_numpy(np.array(values, np.float32))))

    def extra_repr(self) -> str:
        where = self.hook_name or "an unnamed hook"
        return f"{self.cfg['architecture']}, {self.d_in:,} → {self.d_sae:,} features, reads {where}"

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def hook_name(self) -> str | None:
        return self.cfg["metadata"].get("hook_name")

    @property
    def head(self) -> int | None:
        """The number of the single attention head that it reads; None if it reads all of a hook."""
        return self.cfg["metadata"].get("hook_head_index")

    @property
    def max_norm(self) -> float | None:
        return self.cfg["metadata"].get("max_norm")

    def on(self, device: torch.device) -> TorchSAE:
        """This module, moved to a device; its weights can be used with gradients even if moved in inference mode."""
        if device.type == "meta":  # where weights would lose their values
            return self
        with torch.inference_mode(False):
            return self.to(device)

    @in_format_of_weights
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Feature values [..., F] of rows [..., D]."""
        f = self._activated(x)
        return f if self.max_norm is None else torch.where(self._knows(x), f, 0)

    def _knows(self, x: torch.Tensor) -> torch.Tensor:
        return x.norm(dim=-1, keepdim=True) <= self.max_norm

    def _activated(self, x: torch.Tensor) -> torch.Tensor:
        projected = (normalized(x, self.norm)[0] - self.b_dec) @ self.W_enc
        architecture = self.cfg["architecture"]
        if architecture == "gated":
            magnitude = torch.relu(self.r_mag.exp() * projected + self.b_mag)
            return torch.where(projected + self.b_gate > 0, magnitude, 0)
        z = projected + self.b_enc
        if architecture == "jumprelu":
            return torch.where(z > self.threshold, z, 0)
        if architecture == "topk":
            largest, at = z.topk(self.cfg["k"], sorted=False)
            return torch.zeros_like(z).scatter(-1, at, largest.relu())
        if architecture == "abstopk":
            at = z.abs().topk(self.cfg["k"], sorted=False).indices
            return torch.zeros_like(z).scatter(-1, at, z.gather(-1, at))
        return torch.relu(z)

    @in_format_of_weights
    def decode(self, f: torch.Tensor) -> torch.Tensor:
        """Rows [..., D] from feature values [..., F]. Raises TypeError if the scale of a row is not in its features."""
        if self.norm not in ("none", "center"):
            raise TypeError("decode cannot scale back without the rows: call reconstruct(x, f) instead")
        return f @ self.W_dec + self.b_dec

    @in_format_of_weights
    def reconstruct(self, x: torch.Tensor, f: torch.Tensor) -> torch.Tensor:
        """The reconstruction of rows x from their feature values f; x is needed to undo its normalization."""
        _, scale, shift = normalized(x, self.norm)
        reconstruction = (f @ self.W_dec + self.b_dec) * scale + shift
        return reconstruction if self.max_norm is None else torch.where(self._knows(x), reconstruction, x)

    @in_format_of_weights
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The reconstruction of rows [..., D]."""
        return self.reconstruct(x, self.encode(x))


def dense(rows: torch.Tensor) -> torch.Tensor:
    """The rows in torch's ordinary layout. Raises InputError for rows without values and for complex ones."""
    if rows.is_meta:
        raise InputError("the input is a meta tensor: it has a shape but no values: give a tensor with values")
    if rows.is_complex():
        raise InputError(f"an SAE needs real numbers, not {str(rows.dtype).removeprefix('torch.')}: pass floats")
    rows = rows.dequantize() if rows.is_quantized else rows
    return rows if rows.layout is torch.strided else rows.to_dense()


def normalized(x: torch.Tensor, norm: str) -> tuple[torch.Tensor, Any, Any]:
    """(normalized rows, scale and shift of the reconstruction), as `sae_jax/models/row_normalized.py` in JAX."""
    if norm == "none":
        return x, 1, 0
    mean = x.mean(-1, keepdim=True)
    if norm == "center":
        return x - mean, 1, mean
    if norm == "layer_norm":
        std = x.std(-1, keepdim=True)
        return (x - mean) / (std + 1e-5), std, mean
    scale = x.norm(dim=-1, keepdim=True).clamp(min=1e-30) / x.shape[-1] ** 0.5  # constant_norm_rescale
    return x / scale, scale, 0
