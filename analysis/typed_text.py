"""A text that a person typed, through the run's own language model and a member's dictionary.

Shapes: T tokens, D width of the model, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flax import nnx
from scipy import sparse

from analysis.contexts import token_texts
from analysis.firing import encode
from analysis.run import FinishedRun
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
