"""The features that fire on a text that the user typed, with the run's language model and a member's dictionary.

Shapes: T tokens, D width of the model, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flax import nnx
from scipy import sparse

from analysis.features.activations import encode_padded
from analysis.features.contexts import token_texts
from analysis.runs.finished import FinishedRun
from harvest.errors import InputError

PADDED = 64  # texts are padded to a multiple of so many tokens, so that they share compiled programs


@dataclass(frozen=True)
class TypedText:
    """A text's tokens and the activations at each token."""

    tokens: list[str]
    values_TxF: sparse.csr_array  # 0 at a first position that training left out


def read_text(run: FinishedRun, member: str, text: str) -> TypedText:
    """Compute the activations at each token. Raises InputError for a text without a token or too long for the model."""
    model, site = run.language_model, run.site(member)
    token_T = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if not token_T:
        raise InputError(f"there is no token in this text ({text!r}): type some words")
    if len(token_T) > (longest := model.longest):
        raise InputError(f"this text has {len(token_T):,} tokens: the model reads at most {longest:,}, so shorten it")
    x_TxD = model.activations(np.array([token_T]), [site])[site][0]
    values_TxF = np.array(encode_padded(*nnx.split(run.dictionary(member).sae), x_TxD, PADDED))
    values_TxF[: run.first_position] = 0
    return TypedText(token_texts(model.tokenizer, token_T), sparse.csr_array(values_TxF))


def ranked(text: TypedText, position: int | None) -> list[tuple[int, float, int, int]]:
    """(feature, its largest activation, the token of that, the number of tokens on which it fires), strongest first.

    With a position, only features that fire there are returned, with their activation there.
    """
    values_FxT = text.values_TxF.T.tocsr()
    firing = []
    for feature in np.flatnonzero(np.diff(values_FxT.indptr)).tolist():
        row = slice(values_FxT.indptr[feature], values_FxT.indptr[feature + 1])
        token_N, value_N = values_FxT.indices[row], values_FxT.data[row]
        here_N = np.abs(value_N) if position is None else np.where(token_N == position, np.abs(value_N), 0)
        best = int(here_N.argmax())
        if here_N[best] > 0:
            firing.append((feature, float(value_N[best]), int(token_N[best]), len(token_N)))
    return sorted(firing, key=lambda entry: -abs(entry[1]))
