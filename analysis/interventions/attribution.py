"""What each feature of a prompt does to one output of the model, estimated by gradients and checked by ablation.

At position t feature i gives f_ti · (W_dec[i] · g_t), the output's gradient g taken from the site on, with the
dictionary's error kept: x = decode(f) + error, error constant. Summed over positions that is the feature's attribution.

    gradient     g at x: the first-order effect of taking f_i away (attribution patching)
    integrated   the mean of g along x − (1 − α)·f W_dec, α from 0 to 1, all features faded in together (Sundararajan et
                 al. 2017): attributions add up to the output with the features less the output without any
    path         the mean of g along x − (1 − α)·f_i W_dec[i], the way that the ablation of i takes: summed over
                 positions it is what ablation takes, as nearly as two points stand for the way. It costs two gradients
                 a feature, and so is done for the CANDIDATES × top largest by `integrated`

An ablation runs the model on with x − f_i · W_dec[i] at all positions. Where the rest of the model is linear all three
are the same. The output is the target's logit less that of another token, or less the mean logit of the vocabulary.

Shapes: T tokens, S steps, K features ablated, D width of the model, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from harvest.request import Site

if TYPE_CHECKING:
    from harvest.interventions.attribution import Output
    from harvest.model.language_model import LanguageModel
    from sae_jax.models.base import SAE

PATH_POINTS, CANDIDATES = 2, 3


@dataclass(frozen=True)
class Effect:
    """Of one feature: its attribution, what ablating it took from the output, and where it gave most."""

    feature: int
    attribution: float
    ablation: float
    position: int
    value: float  # of the feature there


@dataclass(frozen=True)
class Attribution:
    method: str
    output: float  # the contrast of logits
    probability: float  # of the target, next
    active: int  # features that fire somewhere in the prompt
    features_give: float  # sum of all features' attributions (of `path`: by `integrated`)
    error_gives: float  # gradient · error, of what the dictionary does not reconstruct
    effects: tuple[Effect, ...]  # of the features with the largest attributions, either sign, largest first
    correlation: float | None  # of attribution and ablation over these; None where one of them is constant


def compute_attribution(
    model: LanguageModel,
    prompt_T: Sequence[int],
    site: Site,
    sae: SAE,
    target: int,
    against: int | None = None,
    method: str = "path",
    top: int = 20,
    steps: int = 16,
    first_position: int = 1,
) -> Attribution:
    """Positions before `first_position`, which the dictionary was not trained on, stay as they are."""
    from harvest.interventions.attribution import Output

    vocabulary = model.bridge.cfg.d_vocab
    contrast_V = np.full(vocabulary, 0.0 if against is not None else -1 / vocabulary)
    contrast_V[target] += 1
    if against is not None:
        contrast_V[against] -= 1
    output = Output(model, prompt_T, site, contrast_V)
    x_TxD = output.activation_TxD
    f_TxF = np.array(sae.encode(jnp.asarray(x_TxD)))
    f_TxF[:first_position] = 0
    W_dec_FxD = np.asarray(sae.W_dec[...])
    g_TxD = slopes(output, f_TxF @ W_dec_FxD, 0 if method == "gradient" else steps)
    given_TxF = f_TxF * (g_TxD @ W_dec_FxD.T)
    active_F = (f_TxF != 0).any(0)
    features_give, chosen_K = float(given_TxF.sum()), largest(given_TxF.sum(0), min(CANDIDATES * top, active_F.sum()))
    if method == "path":
        for i in chosen_K:
            own_TxD = f_TxF[:, i, None] * W_dec_FxD[i]
            given_TxF[:, i] = (slopes(output, own_TxD, PATH_POINTS) * own_TxD).sum(1)
    given_F = given_TxF.sum(0)
    chosen_K = chosen_K[largest(given_F[chosen_K], top)]
    taken_K = ablations(output, f_TxF[:, chosen_K], W_dec_FxD[chosen_K])
    at_K = np.abs(given_TxF[:, chosen_K]).argmax(0)
    effects = tuple(
        Effect(int(i), float(given_F[i]), float(taken), int(t), float(f_TxF[t, i]))
        for i, taken, t in zip(chosen_K, taken_K, at_K, strict=True)
    )
    error_TxD = x_TxD - f_TxF @ W_dec_FxD - np.asarray(sae.b_dec[...])
    logits_V = output.logits_V.astype(np.float64)
    return Attribution(
        method,
        float(logits_V @ contrast_V),
        float(np.exp(logits_V[target] - logits_V.max()) / np.exp(logits_V - logits_V.max()).sum()),
        int(active_F.sum()),
        features_give,
        float((g_TxD * error_TxD)[first_position:].sum()),
        effects,
        correlation(given_F[chosen_K], taken_K),
    )


def slopes(output: Output, faded_TxD: np.ndarray, points: int) -> np.ndarray:
    """The output's gradient [T, D]: at x, or its mean while a part of x fades in, at so many Gauss–Legendre points."""
    if not points:
        return output.gradients(output.activation_TxD[None])[0]
    at_S, weight_S = np.polynomial.legendre.leggauss(points)
    missing_S = (1 - at_S) / 2
    g_SxTxD = output.gradients(output.activation_TxD - missing_S[:, None, None] * faded_TxD)
    return np.einsum("s,std->td", weight_S / 2, g_SxTxD)


def largest(values_K: np.ndarray, count: int) -> np.ndarray:
    """Where the values of largest size are, either sign, largest first."""
    return np.argsort(-np.abs(values_K), kind="stable")[:count]


def ablations(output: Output, f_TxK: np.ndarray, W_dec_KxD: np.ndarray) -> np.ndarray:
    """What the output loses without each feature, [K]."""
    x_TxD = output.activation_TxD
    without = output.values(x_TxD - np.einsum("tk,kd->ktd", f_TxK, W_dec_KxD))
    return output.values(x_TxD[None])[0] - without


def correlation(a_K: np.ndarray, b_K: np.ndarray) -> float | None:
    if len(a_K) < 2 or not (np.ptp(a_K) > 0 and np.ptp(b_K) > 0):
        return None
    return float(np.corrcoef(a_K, b_K)[0, 1])
