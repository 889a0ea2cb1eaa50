"""A text that a person typed, through the run's own language model and a member's dictionary.

Shapes: T tokens, D width of the model, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flax import nnx
from scipy import sparse

from analysis.features.activations import encode
from analysis.features.contexts import token_texts
from analysis.runs.finished import FinishedRun
from harvest.errors import InputError

PADDED = 64  # tokens: texts of about one length share a compiled program


@dataclass(frozen=True)
class TypedText:
    tokens: list[str]
    values_TxF: sparse.csr_array  # no feature fires at a first position that training left out


def read_text(run: FinishedRun, member: str, text: str) -> TypedText:
    """What fires at each token. Raises InputError for a text without a token, or longer than the model reads."""
    model, site = run.language_model, run.site(member)
    token_T = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if not token_T:
        raise InputError(f"{text!r}: there is no token in this text: type some")
    if len(token_T) > (longest := model.bridge.cfg.n_ctx):
        raise InputError(f"this text has {len(token_T):,} tokens: the model reads at most {longest:,}, so shorten it")
    x_TxD = model.activations(np.array([token_T]), [site])[site][0]
    padded_TxD = np.pad(x_TxD, ((0, -len(x_TxD) % PADDED), (0, 0)))
    values_TxF = np.array(encode(*nnx.split(run.dictionary(member).sae), padded_TxD))[: len(token_T)]
    values_TxF[: run.first_position] = 0
    return TypedText(token_texts(model.tokenizer, token_T), sparse.csr_array(values_TxF))


def ranked(text: TypedText, position: int | None = None) -> list[tuple[int, float, int, int]]:
    """Features that fire, the strongest first: (feature, its largest activation, at which token, on how many tokens).

    Of a position only those that fire there, by what they have there.
    """
    of_FxT = text.values_TxF.T.tocsr()
    found = []
    for feature in np.flatnonzero(np.diff(of_FxT.indptr)).tolist():
        own = slice(of_FxT.indptr[feature], of_FxT.indptr[feature + 1])
        token_N, value_N = of_FxT.indices[own], of_FxT.data[own]
        here_N = np.abs(value_N) if position is None else np.where(token_N == position, np.abs(value_N), 0)
        best = int(here_N.argmax())
        if here_N[best] > 0:
            found.append((feature, float(value_N[best]), int(token_N[best]), len(token_N)))
    return sorted(found, key=lambda entry: -abs(entry[1]))
