"""The language model that imported rows come from, and whether they are what it gives at a site.

Shapes: W windows, T tokens per window, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from harvest.errors import InputError
from harvest.identity import MODEL_ROUNDING
from harvest.messages import Say
from harvest.model_pass import model_facts, site_facts
from harvest.request import HarvestRequest, Site
from harvest.sources import resolve

COMPARED = 4  # windows
FAR = MODEL_ROUNDING["bfloat16"]  # the largest difference of a row, relative to its norm, of a model in any format


class WrittenByModel:
    """A language model, loaded to compare imported rows with its own.

    `tokens_WxT` are the first windows: if each begins with BOS, all windows must.
    """

    def __init__(self, name: str, site: Site, tokens_WxT: np.ndarray, say: Say):
        from harvest.model.language_model import LanguageModel
        from harvest.model.tokenizer import begin_of_text, load_tokenizer

        length = max(2, tokens_WxT.shape[1])
        self.source, _ = resolve(
            HarvestRequest(model_name=name, dataset="bundled", layer=(site.layer,), seq_len=length)
        )
        self.site = site
        tokenizer = load_tokenizer(self.source.location)
        try:
            bos = begin_of_text(tokenizer, "on", self.source.location)
        except InputError:
            bos = ()  # it has no such token
        begins = bool(bos) and bool((tokens_WxT[:, : len(bos)] == bos).all())
        self.language_model = LanguageModel.load(self.source.location, bos="on" if begins else "off")
        self.special = np.array(tokenizer.all_special_ids, np.int64)
        bos_text = "behind BOS, which is no row" if begins else "without BOS; their first positions are rows, too"
        say(f"model: {self.source.asked}, windows {bos_text}")

    def without_bos(self, rows_WxTxD: np.ndarray, tokens_WxT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and tokens of windows without BOS, which is never a row. Raises InputError for unknown tokens."""
        self.language_model.check_tokens(tokens_WxT)
        bos = self.language_model.bos
        if bos and not (tokens_WxT[:, : len(bos)] == bos).all():
            raise InputError("some windows begin with BOS and others do not: import them separately")
        return rows_WxTxD[:, len(bos) :], tokens_WxT[:, len(bos) :]

    def refuse_others(self, rows_WxTxD: np.ndarray, tokens_WxT: np.ndarray) -> None:
        """Raise InputError unless the rows of the first windows are what the model gives there, up to rounding."""
        from harvest.rehearsal import rehearse

        model, few = self.language_model, slice(0, COMPARED)
        self.rehearsed = rehearse(model, tokens_WxT, [self.site], 0)[self.site]
        own_WxTxD = model.activations(tokens_WxT[few], [self.site])[self.site]
        where = f"{self.source.asked} at {self.site.hook_name}"
        if own_WxTxD.shape[-1] != rows_WxTxD.shape[-1]:
            raise InputError(
                f"the rows have width {rows_WxTxD.shape[-1]}, those of {where} {own_WxTxD.shape[-1]}: give the model, "
                "layer and hook that they come from"
            )
        norm_WxT = np.linalg.norm(own_WxTxD, axis=-1)
        far_WxT = np.linalg.norm(rows_WxTxD[few] - own_WxTxD, axis=-1) / np.maximum(norm_WxT, 1e-30)
        if (far := float(np.median(far_WxT))) > FAR:
            raise InputError(
                f"the rows of the first windows are not those of {where}: they differ by {far:.0%} of their norm: give "
                "the model, layer and hook that they come from, and whole windows of tokens"
            )

    def facts(self) -> dict[str, Any]:
        """Facts for the manifest of the store."""
        model = self.language_model
        return model_facts(model, self.source) | site_facts(model, self.site, self.rehearsed)
