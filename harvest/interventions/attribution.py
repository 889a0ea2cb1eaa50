"""The output of a language model as a function of an activation: values and gradients.

The output is c · logits, a contrast c of the logits at the last position. Only the layers after the site run again; the
ones before it return their earlier results.

Shapes: K activations, T tokens, D width of the model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from harvest.interventions.loss_recovered import BATCH_LOGITS, PatchedForward
from harvest.model.language_model import LanguageModel
from harvest.request import Site


class Output:
    """The output for a prompt as a function of its activation at a site, float32 [T, D].

    Raises InputError for an encoder, for a hook that the model lacks, and if the unchanged model cannot be reproduced
    by running it from the site on.
    """

    def __init__(self, model: LanguageModel, prompt_T: Sequence[int], site: Site, contrast_V: np.ndarray):
        model.need_next_token("Attribution of the next token to features (attribute)")
        self.model, self.site, self.prompt_T = model, site, np.array(prompt_T)
        self.contrast_V = torch.from_numpy(contrast_V).to(model.device, torch.float32)
        self.runs: dict[int, PatchedForward] = {}
        run = self._run(1)
        run.check(run.logits_WxTxV.log_softmax(-1), 0)
        self.activation_TxD: np.ndarray = run.activation_WxTxD[0].numpy()
        self.logits_V: np.ndarray = run.logits_WxTxV[0, -1].cpu().numpy()

    def values(self, x_KxTxD: np.ndarray) -> np.ndarray:
        """c · logits for K activations at the site, [K]."""
        return np.concatenate([self._output(torch.from_numpy(x)).cpu().numpy() for x in self._batches(x_KxTxD)])

    def gradients(self, x_KxTxD: np.ndarray) -> np.ndarray:
        """The gradient of c · logits for K activations at the site, [K, T, D]."""
        gradients = []
        for batch_KxTxD in self._batches(x_KxTxD):
            x = torch.from_numpy(batch_KxTxD).requires_grad_()
            output = self._output(x).sum()
            with self.model.running([self.site]):
                (gradient,) = torch.autograd.grad(output, x)
            gradients.append(gradient.cpu().numpy())
        return np.concatenate(gradients)

    def _output(self, x_KxTxD: torch.Tensor) -> torch.Tensor:
        return self._run(len(x_KxTxD)).run_with(x_KxTxD)[:, -1] @ self.contrast_V

    def _batches(self, x_KxTxD: np.ndarray) -> list[np.ndarray]:
        size = max(1, BATCH_LOGITS // (len(self.prompt_T) * len(self.contrast_V)))
        return [x_KxTxD[i : i + size].astype(np.float32) for i in range(0, len(x_KxTxD), size)]

    def _run(self, copies: int) -> PatchedForward:
        """The part of the model after the site, for this many activations at once."""
        if copies not in self.runs:
            tokens = self.model.token_ids(np.tile(self.prompt_T, (copies, 1)))
            self.runs[copies] = PatchedForward(self.model, tokens, self.site)
        return self.runs[copies]
