"""What a direction of the residual stream adds to the logits of each token.

Shapes: K directions, D width of the model, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch

from harvest.model.language_model import LanguageModel

FAR = 1e3  # so long a direction makes the norm's epsilon nothing


def logit_weights(model: LanguageModel, directions_KxD: np.ndarray) -> np.ndarray:
    """Directions through the final norm's gain (centered, where it is a LayerNorm) and the unembedding, [K, V].

    The convention of Neuronpedia's and of TransformerLens' folded weights; SAEDashboard leaves the gain out. What the
    norm divides by depends on the text: the figures compare tokens of one direction, they are no logits. The gain is
    read from the norm's answers, so that models count whose gain is stored as 1 + weight. Raises InputError for an
    encoder, whose head is no such product.
    """
    model.need_next_token("What a direction adds to the next token")
    norm = model.bridge.ln_final.original_component
    head = model.bridge.unembed.original_component
    with model.running(), torch.inference_mode():
        x_KxD = torch.from_numpy(np.asarray(directions_KxD, np.float32)).to(model.device)
        zero_D = torch.zeros_like(x_KxD[0])
        ones_D, bias_D = zero_D + FAR, norm(zero_D)
        if (norm(ones_D) - bias_D).abs().max() < 1e-3:  # a LayerNorm takes the mean away
            x_KxD = x_KxD - x_KxD.mean(1, keepdim=True)
        rms_Kx1 = x_KxD.square().mean(1, keepdim=True).sqrt().clamp(min=1e-30)
        y_KxD = (norm(x_KxD / rms_Kx1 * FAR) - bias_D) * rms_Kx1
        return (head(y_KxD) - head(zero_D)).float().cpu().numpy()
