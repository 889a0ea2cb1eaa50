"""The tokens that each feature promotes and suppresses most, and a histogram of its weights on all tokens.

Shapes: F features, B of them at a time, D width of the model, V vocabulary, T tokens, H bars of the histogram.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from harvest.request import Site

if TYPE_CHECKING:
    from harvest.model.language_model import LanguageModel

TOKENS, LOGIT_BARS = 20, 50
BLOCK = 512  # features whose weights on all tokens are computed at a time


def logit_statistics(model: LanguageModel | None, site: Site, W_dec_FxD: np.ndarray) -> dict[str, np.ndarray]:
    """The fields of Features on logit weights: promoted and suppressed tokens, their weights, and the histogram.

    There are no such tokens without a model, if it predicts no next token, or only reads the activation at this site.
    """
    from harvest.model.logit_weights import logit_weights, residual_directions  # imports torch

    stream_FxD = None
    if model and not model.reads_both_ways:
        stream_FxD = residual_directions(model, site, W_dec_FxD)
    if model is None or stream_FxD is None:
        none_FxT = np.zeros((len(W_dec_FxD), 0))
        empty = {"logit_count_FxH": np.zeros((len(W_dec_FxD), LOGIT_BARS), np.int32)}
        for name in ("promoted", "suppressed"):
            empty |= {f"{name}_FxT": none_FxT.astype(np.int64), f"{name}_weight_FxT": none_FxT.astype(np.float32)}
        return empty
    parts: dict[str, list[np.ndarray]] = {}
    for first in range(0, len(stream_FxD), BLOCK):
        weight_BxV = logit_weights(model, stream_FxD[first : first + BLOCK])
        counts_BxH = np.stack([np.histogram(weight_V, LOGIT_BARS)[0] for weight_V in weight_BxV])
        parts.setdefault("logit_count_FxH", []).append(counts_BxH.astype(np.int32))
        for name, signed_BxV in (("promoted", weight_BxV), ("suppressed", -weight_BxV)):
            token_BxT = np.argpartition(-signed_BxV, TOKENS, axis=1)[:, :TOKENS]
            order_BxT = np.argsort(-np.take_along_axis(signed_BxV, token_BxT, 1), axis=1)
            token_BxT = np.take_along_axis(token_BxT, order_BxT, 1)
            parts.setdefault(f"{name}_FxT", []).append(token_BxT)
            parts.setdefault(f"{name}_weight_FxT", []).append(np.take_along_axis(weight_BxV, token_BxT, 1))
    return {name: np.concatenate(blocks) for name, blocks in parts.items()}
