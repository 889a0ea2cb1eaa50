"""Mean activations and features of documents or words, for all members in one pass of the model.

Shapes: N items, W windows, T tokens per window, D width of the model, F features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from analysis.geometry import unit
from harvest.model_pass import BATCH_TOKENS
from harvest.request import Site
from harvest.text.passages import Passages
from sae_jax.models.base import SAE

if TYPE_CHECKING:
    from harvest.model.language_model import LanguageModel


class Pooled(NamedTuple):
    """Mean activations and features of each item. Features are f·‖W_dec‖ in units of x, and decoder rows have norm 1.

    How a dictionary divides its scale between features and decoder rows therefore changes no score.
    """

    x_NxD: np.ndarray
    f_NxF: np.ndarray
    decoder_FxD: np.ndarray


def pool(
    model: LanguageModel,
    passages: Passages,
    saes: dict[str, SAE],
    sites: dict[str, Site],
    on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> dict[str, Pooled]:
    """The pooled items of each member, in one pass of the model. Memory: N × F floats per member, N × D per site."""
    n, (windows, length) = passages.item_W.max() + 1, passages.tokens_WxT.shape
    parts = {name: nnx.split(sae) for name, sae in saes.items()}
    f_sums = {name: np.zeros((n, sae.W_dec.shape[0]), np.float32) for name, sae in saes.items()}
    x_sums = {sites[name]: np.zeros((n, sae.W_dec.shape[1]), np.float32) for name, sae in saes.items()}
    sums = jax.jit(sum_features, static_argnums=0)
    batch = -(-BATCH_TOKENS // length)
    for start in range(0, windows, batch):
        on_progress("reading", start * length, windows * length)
        item_W = passages.item_W[start : start + batch]
        fill = ((0, batch - len(item_W)), (0, 0))  # padding to one shape, which is compiled once; it has weight 0
        tokens_WxT = np.pad(passages.tokens_WxT[start : start + batch], fill)
        counts_WxT = np.pad(passages.counts_WxT[start : start + batch], fill)
        for site, x_WxTxD in model.activations(tokens_WxT, list(x_sums)).items():
            np.add.at(x_sums[site], item_W, (x_WxTxD * counts_WxT[..., None]).sum(1)[: len(item_W)])
            for name in (name for name, member_site in sites.items() if member_site == site):
                f_WxF = sums(*parts[name], x_WxTxD, counts_WxT)
                np.add.at(f_sums[name], item_W, np.asarray(f_WxF)[: len(item_W)])
    rows_Nx1 = np.bincount(passages.item_W, weights=passages.counts_WxT.sum(1))[:, None].astype(np.float32)
    x_means = {site: x_NxD / rows_Nx1 for site, x_NxD in x_sums.items()}
    on_progress("reading", windows * length, windows * length)
    return {
        name: Pooled(x_means[sites[name]], f_sums[name] / rows_Nx1, unit(np.asarray(sae.W_dec[...])))
        for name, sae in saes.items()
    }


def sum_features(graphdef: nnx.GraphDef, weights: nnx.State, x_WxTxD: jax.Array, counts_WxT: jax.Array) -> jax.Array:
    sae = nnx.merge(graphdef, weights)
    f_WxTxF = sae.encode(x_WxTxD.reshape(-1, x_WxTxD.shape[-1])).reshape(*counts_WxT.shape, -1)
    return (f_WxTxF * counts_WxT[..., None]).sum(1) * jnp.linalg.norm(sae.W_dec[...], axis=1)[None]
