"""One small batch through all that will run, before anything is harvested: what a model cannot do is found at once.

Shapes: W windows, T tokens a window.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harvest.errors import InputError
from harvest.interventions.loss_recovered import losses
from harvest.model.language_model import LanguageModel
from harvest.request import HOOKS, Site

WINDOWS = 4
ROUNDING = 1e-5  # of float32, as a share of what is added


def rehearse(
    model: LanguageModel, tokens_WxT: np.ndarray, sites: Sequence[Site], first_position: int
) -> dict[Site, str | None]:
    """Why loss recovered cannot be measured at each site, None where it can.

    Raises InputError for tokens that the model does not know, for a hook that it lacks or that cannot be run, and for
    one whose tensor is another than its name says.
    """
    model.check_tokens(tokens_WxT)
    few_WxT = tokens_WxT[:WINDOWS]
    model.activations(few_WxT, sites)
    for site in sites:
        check_meaning(model, few_WxT, site)
    return {site: trouble(model, few_WxT, site, first_position) for site in sites}


def check_meaning(model: LanguageModel, tokens_WxT: np.ndarray, site: Site) -> None:
    """Raises InputError unless attn_out and mlp_out are what a block adds to the residual stream, and resid_mid is the
    stream between the two additions. In models that normalize the sum they are other tensors."""
    if site.hook in ("resid_pre", "resid_post"):
        return
    here = [Site(site.layer, hook) for hook in HOOKS]
    here = [place for place in here if place.hook_name in model.bridge.hook_dict]
    try:
        found = {place.hook: x_WxTxD for place, x_WxTxD in model.activations(tokens_WxT, here).items()}
    except InputError as error:
        raise InputError(f"--hook {site.hook}: it cannot be seen what it is in this model: {error}") from error
    sums: list[tuple[str, tuple[str, ...]]] = [
        ("resid_mid", ("resid_pre", "attn_out")),
        ("resid_post", ("resid_mid", "mlp_out")),
    ]
    if "resid_mid" not in found:  # attention and MLP read the same stream
        sums = [("resid_post", ("resid_pre", "attn_out", "mlp_out"))]
    for whole, parts in sums:
        if not {whole, *parts} <= found.keys() or site.hook not in (whole, *parts):
            continue
        of_WxTxD = [found[part] for part in parts]
        size_WxTxD = np.sum(np.abs(of_WxTxD), axis=0)
        if not (np.abs(found[whole] - np.sum(of_WxTxD, axis=0)) <= ROUNDING * size_WxTxD).all():
            raise InputError(
                f"--hook {site.hook}: in layer {site.layer} of {model.name} {whole} is not {' + '.join(parts)}, as in "
                "models that normalize after they add: what bears this name there is another tensor. Choose resid_pre "
                "or resid_post"
            )


def trouble(model: LanguageModel, tokens_WxT: np.ndarray, site: Site, first_position: int) -> str | None:
    """Why loss recovered cannot be measured at a site."""
    if tokens_WxT.shape[1] - first_position < 2:
        return None  # so short a window has no next token: this is known without a model
    try:
        losses(model, tokens_WxT, site, {"itself": lambda x_NxD: x_NxD}, first_position)
    except InputError as error:
        return str(error)
    return None
