"""The largest value of features, and of projections of raw activations, over each passage.

Shapes: W windows, T tokens per window, N passages, D width of the model, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from flax import nnx

from analysis.features.activations import encode
from harvest.model_pass import BATCH_TOKENS
from harvest.request import Site
from sae_jax.models.base import SAE

if TYPE_CHECKING:
    from harvest.model.language_model import LanguageModel
    from harvest.text.concepts import ConceptPassages


class MaxPooled(NamedTuple):
    """Each feature's largest value over the counted positions of a passage, with and without the tokens of the phrase.

    `rest_NxF` is −∞ for a passage that has no positions besides the phrase.
    """

    whole_NxF: np.ndarray
    rest_NxF: np.ndarray


def activations(model: LanguageModel, tokens_WxT: np.ndarray, sites: Iterable[Site]) -> dict[Site, np.ndarray]:
    """Raw activations of all windows, float32 [W, T, D] for each site, in one pass of the model."""
    wanted, batch = list(dict.fromkeys(sites)), -(-BATCH_TOKENS // tokens_WxT.shape[1])
    parts = [model.activations(tokens_WxT[i : i + batch], wanted) for i in range(0, len(tokens_WxT), batch)]
    return {site: np.concatenate([part[site] for part in parts]) for site in wanted}


def max_features(sae: SAE, x_WxTxD: np.ndarray, texts: ConceptPassages) -> MaxPooled:
    """The largest activation of each feature over each passage."""
    graphdef, weights = nnx.split(sae)
    return _pooled(lambda x_NxD: encode(graphdef, weights, x_NxD), sae.W_dec.shape[0], x_WxTxD, texts)


def mean_difference(x_WxTxD: np.ndarray, texts: ConceptPassages, among_N: np.ndarray) -> np.ndarray:
    """The unit direction [D] from the mean activation of other passages to that of the concept's, over `among_N`."""
    counts_WxT = texts.passages.counts_WxT & among_N[texts.passages.item_W][:, None]
    is_concept_Wx1 = texts.is_concept_N[texts.passages.item_W][:, None]
    mean_of = [x_WxTxD[counts_WxT & side].mean(0, dtype=np.float64) for side in (is_concept_Wx1, ~is_concept_Wx1)]
    difference_D = mean_of[0] - mean_of[1]
    return (difference_D / max(float(np.linalg.norm(difference_D)), 1e-30)).astype(np.float32)


def max_projection(direction_D: np.ndarray, x_WxTxD: np.ndarray, texts: ConceptPassages) -> MaxPooled:
    """The largest projection x · direction over each passage, in one column."""
    return _pooled(lambda x_NxD: x_NxD @ direction_D[:, None], 1, x_WxTxD, texts)


def _pooled(
    values: Callable[[np.ndarray], jax.Array | np.ndarray], features: int, x_WxTxD: np.ndarray, texts: ConceptPassages
) -> MaxPooled:
    item_W, counts_WxT = texts.passages.item_W, texts.passages.counts_WxT
    masks = (counts_WxT, counts_WxT & ~texts.phrase_WxT)
    pooled = tuple(np.full((len(texts.is_concept_N), features), -np.inf, np.float32) for _ in masks)
    batch = -(-BATCH_TOKENS // x_WxTxD.shape[1])
    for start in range(0, len(item_W), batch):
        here = slice(start, start + batch)
        x_BxTxD = np.pad(x_WxTxD[here], ((0, batch - len(item_W[here])), (0, 0), (0, 0)))  # one shape, compiled once
        v_BxTxF = np.asarray(values(x_BxTxD.reshape(-1, x_BxTxD.shape[-1]))).reshape(*x_BxTxD.shape[:2], features)
        v_BxTxF = v_BxTxF[: len(item_W[here])]
        for into_NxF, mask_WxT in zip(pooled, masks, strict=True):
            top_BxF = v_BxTxF.max(1, where=mask_WxT[here, :, None], initial=-np.inf)
            np.maximum.at(into_NxF, item_W[here], top_BxF)
    return MaxPooled(*pooled)
