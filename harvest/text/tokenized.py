"""Texts as token ids, long ones in pieces: a fast tokenizer takes over a hundred bytes for each character at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

LONG = PIECE = 1 << 18  # characters
OVERLAP = 1 << 12


def tokenized(tokenizer: Any, texts: list[str], enough: int) -> Sequence[Sequence[int] | np.ndarray]:
    """The token ids of each text, without special tokens; of a text over LONG at least the first `enough`.

    Those of a long text are the same as if it were tokenized whole. Pieces overlap by 8,192 characters. Where one is
    cut from the next is looked for in the text, not in a rule for each kind of tokenizer: at a token that begins in the
    middle of the overlap, if both pieces have the same tokens at the same places for 2,048 characters before it and
    after. A token depends on what is near: on its word, its line, or what a pre-tokenizer's expression reaches. What a
    tokenizer does at the edges of a text (a space put before it, or stripped) stays outside. Where the two differ, as
    in a run of one character, a longer piece is tokenized, if need be the whole. So is a text for a slow tokenizer,
    which does not say where its tokens lie.
    """
    if tokenizer.is_fast and any(len(text) > LONG for text in texts):
        return [_in_pieces(tokenizer, text, enough) for text in texts]
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _in_pieces(tokenizer: Any, text: str, enough: int) -> np.ndarray:
    taken: list[np.ndarray] = []
    begin, piece = 0, _Piece(tokenizer, text, 0, PIECE)
    while piece.end < len(text) and sum(len(ids_T) for ids_T in taken) < enough:
        seam = piece.seam()
        following = _Piece(tokenizer, text, seam - OVERLAP, seam + PIECE)
        if piece.agrees(following, seam):
            taken.append(piece.ids_T[piece.index(begin) : piece.index(seam)])
            begin, piece = seam, following
        else:
            piece = _Piece(tokenizer, text, piece.begin, piece.begin + 2 * (piece.end - piece.begin))
    return np.concatenate([*taken, piece.ids_T[piece.index(begin) :]])


class _Piece:
    """A piece of a text: its tokens and where each begins in the text."""

    def __init__(self, tokenizer: Any, text: str, begin: int, end: int):
        self.begin, self.end = begin, min(end, len(text))
        encoded = tokenizer(
            text[self.begin : self.end],
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        self.ids_T = np.array(encoded["input_ids"], np.int32)
        self.starts_T = np.array([start for start, _ in encoded["offset_mapping"]], np.int64) + begin

    def index(self, place: int) -> int:
        """The number of the first token that begins there or later."""
        return int(np.searchsorted(self.starts_T, place))

    def seam(self) -> int:
        """Where a token begins, OVERLAP before the end."""
        token = self.index(self.end - OVERLAP)
        return int(self.starts_T[token]) if token < len(self.starts_T) else self.end - OVERLAP

    def agrees(self, following: _Piece, seam: int) -> bool:
        (ids_T, starts_T), (their_ids_T, their_starts_T) = (
            (of.ids_T[near], of.starts_T[near])
            for of in (self, following)
            for near in [slice(of.index(seam - OVERLAP // 2), of.index(seam + OVERLAP // 2))]
        )
        return (
            seam in starts_T
            and np.array_equal(ids_T, their_ids_T)
            and np.array_equal(starts_T, their_starts_T)
            and all((np.diff(of.starts_T) >= 0).all() for of in (self, following))
        )
