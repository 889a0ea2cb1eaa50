"""Ablation: the change of a language model's loss at each position if something is subtracted from an activation.

Shapes: W windows, T tokens per window, P positions from `first_position` on, N rows, D width, V vocabulary.
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
    """The effect of an ablation on the output of the model.

    `logp_V` is the mean change of log-probability of each token, over positions at which something was subtracted; 0 if
    there are none.
    """

    ce_WxT: np.ndarray  # increase of the next token's cross-entropy, in nats; 0 at the last position
    kl_WxT: np.ndarray  # KL(unchanged model ‖ changed model), in nats
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
    """Measure the effect of subtracting `taken(rows)` from rows [N, D] at the site, from `first_position` on.

    Raises InputError for an encoder, for a hook that the model lacks, and if the unchanged model cannot be reproduced
    by running it from the site on.
    """
    model.need_next_token("The effect of a feature on the next token")
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
        taken_NxD = np.array(taken(rows_WxPxD.flatten(0, 1).numpy()), np.float32)
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
