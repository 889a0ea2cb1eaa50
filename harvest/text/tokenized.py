"""Tokenization, in pieces for long texts, because a fast tokenizer needs over a hundred bytes per character at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

PIECE = 1 << 18  # characters


def tokenized(tokenizer: Any, texts: list[str], enough: int) -> list[list[int]]:
    """The token ids of each text, without special tokens. Of texts longer than PIECE, at least the first `enough` ids.

    Long texts are cut before a space. Tokenizers whose tokens begin at spaces, such as GPT-2's, give the same ids as
    for the whole text; others may give another token at a cut.
    """
    pieces = [_pieces(text) for text in texts]
    ids = _ids(tokenizer, [next(rest) for rest in pieces])
    for ids_T, rest in zip(ids, pieces, strict=True):
        for piece in rest:
            if len(ids_T) >= enough:
                break
            ids_T += _ids(tokenizer, [piece])[0]
    return ids


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > PIECE:
        space = text.rfind(" ", start + 1, start + PIECE)
        end = space if space > 0 else start + PIECE
        yield text[start:end]
        start = end
    yield text[start:]
