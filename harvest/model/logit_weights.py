"""The contribution of a direction to the residual stream, and of that to the logits of each token.

Shapes: K directions, D width of the model, V vocabulary.
"""

from __future__ import annotations

import copy

import numpy as np
import torch

from harvest.model.language_model import LanguageModel
from harvest.request import STREAMS, Site

OUTPUTS = {"z": ("attn", "o", "ln1_post"), "mlp_post": ("mlp", "out", "ln2_post")}  # part, its last matrix, a norm
FAR = 1e3  # length at which the epsilon of the norm is negligible


def residual_directions(model: LanguageModel, site: Site, directions_KxD: np.ndarray) -> np.ndarray | None:
    """What directions at a site add to the residual stream, [K, width of the model].

    The outputs of attention heads (z) and the hidden layer of the MLP (mlp_post) pass through one matrix. None for a
    site that the model only reads (q, k, v, mlp_in), behind the last norm (final), or with a norm behind the matrix.
    """
    if site.hook in (*STREAMS, "embed"):
        return directions_KxD
    part, matrix, norm = OUTPUTS.get(site.heads, ("", "", ""))
    block = model.bridge.blocks[site.layer]
    if not part or norm in block._modules or matrix not in (inner := block._modules[part])._modules:
        return None
    linear = inner._modules[matrix].original_component
    with model.running(), torch.inference_mode():
        x_KxD = torch.from_numpy(np.asarray(directions_KxD, np.float32)).to(model.device, model.dtype)
        if site.head is not None:  # the other heads stay at 0
            width = x_KxD.shape[1]
            x_KxD = torch.nn.functional.pad(x_KxD, (site.head * width, model.d_z - (site.head + 1) * width))
        return (linear(x_KxD).float() - linear(torch.zeros_like(x_KxD[:1])).float()).cpu().numpy()


def logit_weights(model: LanguageModel, directions_KxD: np.ndarray) -> np.ndarray:
    """Directions times the gain of the final norm and the unembedding, [K, V]; centered first for a LayerNorm.

    This is the convention of Neuronpedia and of TransformerLens' folded weights. SAEDashboard omits the gain. The
    divisor of the norm depends on the text and is omitted, so the values only compare tokens for one direction and are
    no logits. The gain is measured from outputs of the norm, which also works for models that store it as 1 + weight.
    It runs in float32, and the unembedding in the number format of the model. Raises InputError for an encoder, whose
    head is no such product.
    """
    model.need_next_token("The effect of a direction on the next token")
    norm = copy.deepcopy(model.bridge.ln_final.original_component).float()
    head = model.bridge.unembed.original_component
    with model.running(), torch.inference_mode():
        x_KxD = torch.from_numpy(np.asarray(directions_KxD, np.float32)).to(model.device)
        zero_D = torch.zeros_like(x_KxD[0])
        ones_D, bias_D = zero_D + FAR, norm(zero_D)
        if (norm(ones_D) - bias_D).abs().max() < 1e-3:  # a LayerNorm, which subtracts the mean
            x_KxD = x_KxD - x_KxD.mean(1, keepdim=True)
        rms_Kx1 = x_KxD.square().mean(1, keepdim=True).sqrt().clamp(min=1e-30)
        y_KxD = (norm(x_KxD / rms_Kx1 * FAR) - bias_D) * rms_Kx1
        y_KxD, zero_D = y_KxD.to(model.dtype), zero_D.to(model.dtype)
        return (head(y_KxD).float() - head(zero_D).float()).cpu().numpy()
