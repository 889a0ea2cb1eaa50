"""The text around a row of an activation store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from harvest.errors import InputError
from harvest.store import ActivationStore

BEFORE, AFTER = 10, 5  # tokens to show on each side of a row's token


class Context(NamedTuple):
    before: str
    token: str
    after: str
    document: int
    held_out: bool


def context_text(store: ActivationStore, tokenizer, row: int) -> Context:
    """The text around the token of a row. Held-out rows are numbered after the training rows."""
    held_out = bool(row >= len(store.train))
    tokens_T, position, document = place(store, row)
    cuts = (max(0, position - BEFORE), position), (position, position + 1), (position + 1, position + 1 + AFTER)
    left, token, right = (tokenizer.decode(tokens_T[slice(*cut)].tolist()) for cut in cuts)
    part = "\N{REPLACEMENT CHARACTER}"  # of a character, whose other tokens lie outside the context
    return Context(left.lstrip(part), token, right.rstrip(part), document, held_out)


def place(store: ActivationStore, row: int) -> tuple[np.ndarray, int, int]:
    """(token window [T], position in it, document) of a row. Raises InputError if the store has no such row."""
    if row >= len(store.train) + len(store.held_out):
        raise InputError(
            f"{store.directory} has {len(store.train) + len(store.held_out):,} rows and no row {row:,}, which the "
            "features' statistics refer to: delete analysis/features of the run, so that they are computed again"
        )
    if row >= len(store.train):
        return store.held_out.context(row - len(store.train))
    return store.train.context(row)


def token_texts(tokenizer, tokens: Iterable[int]) -> list[str]:
    """The text of each token with its leading space: "�" for part of a character, "" for an id that is no token."""
    tokens = [int(token) for token in tokens]
    texts = tokenizer.batch_decode([[token] for token in tokens], clean_up_tokenization_spaces=False)
    pieces = tokenizer.convert_ids_to_tokens(tokens)
    return [
        f" {text}" if (piece or "").startswith("▁") and not text.startswith(" ") else text  # decoding drops the space
        for text, piece in zip(texts, pieces, strict=True)
    ]


def printable(text: str) -> str:
    """The text with ↵ for a line break, and no other control characters, which .svg files cannot contain."""
    text = text.replace("\n", "↵")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
