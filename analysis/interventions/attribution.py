"""Contributions of a prompt's features to one output of the model, estimated by gradients and checked by ablation.

The attribution of feature i is the sum over positions t of f_ti · (W_dec[i] · g_t). Here g is the gradient of the
output with respect to the activation x = decode(f) + error, with the error constant. The methods differ in g:

    gradient     g at x: the first-order effect of removing f_i (attribution patching)
    integrated   the mean of g along x − (1 − α)·f W_dec for α from 0 to 1, which scales all features up together
                 (Sundararajan et al. 2017). The attributions add up to the output with all features minus the output
                 without any.
    path         the mean of g along x − (1 − α)·f_i W_dec[i], the path that ablation of feature i takes. The
                 attribution is the effect of the ablation, up to the error of PATH_POINTS quadrature points. It costs
                 that many gradients per feature and is computed for the CANDIDATES × top largest by `integrated`.

Ablation runs the rest of the model with x − f_i · W_dec[i] at all positions. If the rest of the model is linear, all
three methods equal it. The output is the target's logit minus that of another token, or minus the mean logit.

Shapes: T tokens, S steps, K ablated features, D width of the model, F features, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from analysis.features.contexts import token_texts
from analysis.runs.finished import FinishedRun
from harvest.errors import InputError
from harvest.request import Site

if TYPE_CHECKING:
    from harvest.interventions.attribution import Output
    from harvest.model.language_model import LanguageModel
    from sae_jax.models.base import SAE

PATH_POINTS, CANDIDATES = 2, 3


@dataclass(frozen=True)
class Effect:
    """The effect of one feature: its attribution, and the decrease of the output when it is ablated."""

    feature: int
    attribution: float
    ablation: float
    position: int  # position of the largest contribution to the attribution
    value: float  # value of the feature at that position


@dataclass(frozen=True)
class Attribution:
    method: str
    output: float  # the contrast of logits
    without_features: float  # the output when all features are ablated at once: bias and error of the dictionary remain
    probability: float  # probability of the target as the next token
    active: int  # number of features that fire somewhere in the prompt
    features_give: float  # sum of the attributions of all features (`path` sums those by `integrated`)
    error_gives: float  # gradient · error: an estimate of what the error adds. It is no part of the sum above
    effects: tuple[Effect, ...]  # features with the largest absolute attributions, largest first
    correlation: float | None  # correlation of attribution and ablation over these features; None if one is constant


@dataclass(frozen=True)
class ExplainedToken:
    """The attribution of the token after a prompt to the features of a run's member."""

    run: FinishedRun
    member: str
    prompt: list[str]  # its tokens
    target: str
    against: str | None
    attribution: Attribution

    def record(self) -> dict[str, Any]:
        """The content of the file of `attribute --json`."""
        facts = {"schema": 1, "run": str(self.run.path), "member": self.member, "prompt": self.prompt}
        facts |= {"hook_name": self.run.site(self.member).hook_name, "target": self.target, "against": self.against}
        return facts | asdict(self.attribution)


def attribute_next_token(
    run: FinishedRun,
    member: str,
    prompt: str,
    target: str,
    against: str | None,
    method: str,
    top: int,
    steps: int,
    on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> ExplainedToken:
    """Attribute the token `target` after a prompt, or its difference to `against`, to the features of a member.

    Raises InputError for a model that predicts no next token, a prompt that is too short or too long, and a text that
    is not one token.
    """
    tokenizer = run.tokenizer  # the tokens are looked up before the model is loaded, which takes long
    wanted = token_of(tokenizer, "target", target)
    other = None if against is None else token_of(tokenizer, "against", against)
    model = run.language_model
    model.need_next_token("Attribution to a next token")
    longest = model.longest
    prompt_T = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if not run.first_position < len(prompt_T) <= longest:
        raise InputError(
            f"--prompt has {len(prompt_T)} tokens: give one of {run.first_position + 1} to {longest} tokens"
        )
    site, sae = run.site(member), run.dictionary(member).sae
    asked = (wanted, other, method, top, steps)
    found = compute_attribution(model, prompt_T, site, sae, *asked, run.first_position, on_progress)
    return ExplainedToken(run, member, token_texts(tokenizer, prompt_T), target, against, found)


def token_of(tokenizer: Any, name: str, text: str) -> int:
    """The id of the single token that `text` consists of. Raises InputError if the text is not exactly one token."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        pieces = " ".join(map(repr, token_texts(tokenizer, ids)))
        spaced = len(tokenizer(f" {text}", add_special_tokens=False)["input_ids"]) == 1
        fix = f"did you mean {f' {text}'!r}?" if spaced else "give a single token, with its leading space if it has one"
        raise InputError(
            f"--{name} {text!r} must be one token, but this model's tokenizer splits it into "
            f"{pieces or 'no tokens'}: {fix}"
        )
    return ids[0]


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
    on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> Attribution:
    """Attribute the model's output after a prompt to the features of a dictionary.

    Positions before `first_position` have no features, because the dictionary was not trained on them.
    """
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
        for done, i in enumerate(chosen_K):
            on_progress("attribution", done, len(chosen_K))
            feature_TxD = f_TxF[:, i, None] * W_dec_FxD[i]
            given_TxF[:, i] = (slopes(output, feature_TxD, PATH_POINTS) * feature_TxD).sum(1)
    given_F = given_TxF.sum(0)
    chosen_K = chosen_K[largest(given_F[chosen_K], top)]
    taken_K = ablations(output, f_TxF[:, chosen_K], W_dec_FxD[chosen_K])
    at_K = np.abs(given_TxF[:, chosen_K]).argmax(0)
    effects = tuple(
        Effect(int(i), float(given_F[i]), float(taken), int(t), float(f_TxF[t, i]))
        for i, taken, t in zip(chosen_K, taken_K, at_K, strict=True)
    )
    rest_TxD = x_TxD - f_TxF @ W_dec_FxD  # what remains if all features are ablated: bias and error
    without = output.values(rest_TxD[None])[0]
    error_TxD = rest_TxD - np.asarray(sae.b_dec[...])
    logits_V = output.logits_V.astype(np.float64)
    return Attribution(
        method,
        float(logits_V @ contrast_V),
        float(without),
        float(np.exp(logits_V[target] - logits_V.max()) / np.exp(logits_V - logits_V.max()).sum()),
        int(active_F.sum()),
        features_give,
        float((g_TxD * error_TxD)[first_position:].sum()),
        effects,
        correlation(given_F[chosen_K], taken_K),
    )


def slopes(output: Output, faded_TxD: np.ndarray, points: int) -> np.ndarray:
    """The output's gradient [T, D] at x if `points` is 0, otherwise its mean over activations from x − faded to x.

    The mean is computed at `points` Gauss–Legendre points.
    """
    if not points:
        return output.gradients(output.activation_TxD[None])[0]
    at_S, weight_S = np.polynomial.legendre.leggauss(points)
    missing_S = (1 - at_S) / 2
    g_SxTxD = output.gradients(output.activation_TxD - missing_S[:, None, None] * faded_TxD)
    return np.einsum("s,std->td", weight_S / 2, g_SxTxD)


def largest(values_K: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` values with the largest absolute value, largest first."""
    return np.argsort(-np.abs(values_K), kind="stable")[:count]


def ablations(output: Output, f_TxK: np.ndarray, W_dec_KxD: np.ndarray) -> np.ndarray:
    """The decrease of the output when each feature is ablated, [K]."""
    x_TxD = output.activation_TxD
    without = output.values(x_TxD - np.einsum("tk,kd->ktd", f_TxK, W_dec_KxD))
    return output.values(x_TxD[None])[0] - without


def correlation(a_K: np.ndarray, b_K: np.ndarray) -> float | None:
    if len(a_K) < 2 or not (np.ptp(a_K) > 0 and np.ptp(b_K) > 0):
        return None
    return float(np.corrcoef(a_K, b_K)[0, 1])
