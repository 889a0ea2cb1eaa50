"""What a language model loses, position by position, where something is taken out of an activation.

Shapes: W windows, T tokens a window, N rows, D width of the model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from harvest.interventions.loss_recovered import PatchedForward, Replace, batch_windows
from harvest.model.language_model import LanguageModel
from harvest.request import Site


class Lost(NamedTuple):
    """`logp_V`: the mean change of every token's log-probability where something was taken; 0 where nothing was."""

    ce_WxT: np.ndarray  # added cross-entropy of the next token, in nats; 0 at the last position, which has none
    kl_WxT: np.ndarray  # KL(unchanged model ‖ this)
    is_taken_WxT: np.ndarray
    logp_V: np.ndarray


def lost_without(
    model: LanguageModel,
    tokens_WxT: np.ndarray,
    site: Site,
    taken: Replace,
    first_position: int,
    on_windows: Callable[[int], None] = lambda n: None,
) -> Lost:
    """`taken` maps rows [N, D] at the site to what is subtracted from them, at positions from `first_position` on.

    Raises InputError for an encoder, for a hook that the model lacks, and where the model, run on from it, is not
    itself.
    """
    model.need_next_token("What a feature does to the next token")
    parts, positions = [], 0
    logp_V = torch.zeros(model.bridge.cfg.d_vocab, dtype=torch.float64)
    batch = batch_windows(model, tokens_WxT.shape[1])
    for start in range(0, len(tokens_WxT), batch):
        tokens = model.token_ids(tokens_WxT[start : start + batch])
        run = PatchedForward(model, tokens, site)
        clean_WxTxV = run.logits_WxTxV.log_softmax(-1)
        if not start:
            run.check(clean_WxTxV, 0)
        taken_WxTxD = torch.zeros_like(run.activation_WxTxD)
        rows_WxPxD = run.activation_WxTxD[:, first_position:]
        taken_NxD = np.array(taken(rows_WxPxD.reshape(-1, model.d_model).numpy()), np.float32)
        taken_WxTxD[:, first_position:] = torch.from_numpy(taken_NxD).view(rows_WxPxD.shape)
        is_WxT = (taken_WxTxD != 0).any(-1)
        logp_WxTxV = run.run_with(run.activation_WxTxD - taken_WxTxD).log_softmax(-1)
        divergence_WxT = (clean_WxTxV.exp() * (clean_WxTxV - logp_WxTxV)).sum(-1)
        change_WxTxV = logp_WxTxV.sub_(clean_WxTxV)
        added_WxT = torch.zeros_like(divergence_WxT)
        added_WxT[:, :-1] = -change_WxTxV[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
        logp_V += change_WxTxV[is_WxT.to(change_WxTxV.device)].sum(0, dtype=torch.float64).cpu()
        positions += int(is_WxT.sum())
        parts.append([part.cpu().numpy() for part in (added_WxT.double(), divergence_WxT.double(), is_WxT)])
        on_windows(len(tokens))
    ce_WxT, kl_WxT, is_taken_WxT = map(np.concatenate, zip(*parts, strict=True))
    return Lost(ce_WxT, kl_WxT, is_taken_WxT, (logp_V / max(positions, 1)).numpy())
