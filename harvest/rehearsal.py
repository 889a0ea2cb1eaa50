"""A test of the model on a small batch before a harvest, so that unsupported hooks are found at once.

Shapes: W windows, T tokens per window, D width of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import log, nan
from typing import NamedTuple

import numpy as np

from harvest.errors import InputError
from harvest.interventions.loss_recovered import losses
from harvest.model.language_model import LanguageModel
from harvest.model.number_format import few_roundings
from harvest.request import STREAMS, Site

WINDOWS = 4
ROUNDING = 1e-5  # least tolerance for rounding, relative to the summands


class Rehearsed(NamedTuple):
    """What a test of one site has shown."""

    width: int  # of its activations
    trouble: str | None  # the reason why loss recovered cannot be measured there, if any
    cross_entropy: float  # of the model on the tested windows, in nats per token; NaN if it cannot be measured


def rehearse(
    model: LanguageModel, tokens_WxT: np.ndarray, sites: Sequence[Site], first_position: int
) -> dict[Site, Rehearsed]:
    """Test the model at each site.

    Raises InputError for tokens without an embedding, for a hook that the model lacks or that cannot be run, and for
    a hook whose tensor is not what its name means.
    """
    model.check_tokens(tokens_WxT)
    few_WxT = tokens_WxT[:WINDOWS]
    activations = model.activations(few_WxT, sites)
    for site in sites:
        check_meaning(model, few_WxT, site)
    return {
        site: Rehearsed(x_WxTxD.shape[-1], *measurable(model, few_WxT, site, first_position))
        for site, x_WxTxD in activations.items()
    }


def guesses(model: LanguageModel, rehearsed: Iterable[Rehearsed]) -> str:
    """A remark if the model predicts the text no better than one that knows nothing; "" otherwise.

    The tokens are then probably those of another model.
    """
    chance = log(model.vocabulary)
    found = next((r.cross_entropy for r in rehearsed if r.cross_entropy > chance), None)
    if found is None:
        return ""
    return (
        f"{model.name} predicts this text no better than by chance ({found:.1f} nats per token of its first windows; "
        f"chance is {chance:.1f}): check that its tokenizer, or the token ids of the data set, are its own"
    )


def check_meaning(model: LanguageModel, tokens_WxT: np.ndarray, site: Site) -> None:
    """Raise InputError if the hook of a site has another meaning in this model than its name says.

    attn_out and mlp_out must be what a block adds to the residual stream, and resid_mid the stream between the two
    additions. They are not in models that normalize after the addition.
    """
    if site.hook in ("resid_pre", "resid_post") or site.hook not in STREAMS:
        return
    sites = [Site(site.layer, hook) for hook in STREAMS]
    sites = [other for other in sites if other.hook_name in model.bridge.hook_dict]
    try:
        streams = {other.hook: x_WxTxD for other, x_WxTxD in model.activations(tokens_WxT, sites).items()}
    except InputError as error:
        raise InputError(
            f"--hook {site.hook}: its meaning in this model cannot be checked ({error}): choose another hook"
        ) from error
    sums: list[tuple[str, tuple[str, ...]]] = [
        ("resid_mid", ("resid_pre", "attn_out")),
        ("resid_post", ("resid_mid", "mlp_out")),
    ]
    if "resid_mid" not in streams:  # attention and MLP read the same stream
        sums = [("resid_post", ("resid_pre", "attn_out", "mlp_out"))]
    for whole, parts in sums:
        if not {whole, *parts} <= streams.keys() or site.hook not in (whole, *parts):
            continue
        parts_WxTxD = [streams[part] for part in parts]
        most_WxTxD = max(ROUNDING, few_roundings(model.dtype)) * np.sum(np.abs(parts_WxTxD), axis=0)
        if not (np.abs(streams[whole] - np.sum(parts_WxTxD, axis=0)) <= most_WxTxD).all():
            raise InputError(
                f"--hook {site.hook}: in layer {site.layer} of {model.name}, {whole} is not {' + '.join(parts)}. The "
                "model probably normalizes after the addition, so this hook has another meaning: choose resid_pre or "
                "resid_post"
            )


def measurable(
    model: LanguageModel, tokens_WxT: np.ndarray, site: Site, first_position: int
) -> tuple[str | None, float]:
    """(the reason why loss recovered cannot be measured at a site, or None; the cross-entropy of the model, or NaN)."""
    if tokens_WxT.shape[1] - first_position < 2:
        return None, nan  # such short windows have no next token to predict, which does not depend on the model
    try:
        clean, _ = losses(model, tokens_WxT, site, {"itself": lambda x_NxD: x_NxD}, first_position)
    except InputError as error:
        return str(error), nan
    return None, float(clean.ce_W.mean())
