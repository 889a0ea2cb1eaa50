"""Tokenization, in pieces for long texts, because a fast tokenizer needs over a hundred bytes per character at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

LONG = PIECE = 1 << 18  # characters
OVERLAP = 1 << 12


def tokenized(tokenizer: Any, texts: list[str], enough: int) -> Sequence[Sequence[int] | np.ndarray]:
    """The token ids of each text, without special tokens. A text longer than LONG gets at least its first `enough` ids.

    The ids of a long text are the same as if it were tokenized whole. Pieces overlap by 8,192 characters. Two pieces
    are joined at a token that begins in the middle of the overlap, if both have the same tokens at the same positions
    for 2,048 characters before and after it. This needs no rule for each tokenizer: a token depends only on nearby
    text, such as its word, its line, or the match of a pre-tokenizer's expression. Changes at the edges of a text, such
    as an added or stripped space, are outside of this range. If the pieces differ, as in a long run of one character, a
    longer piece is tokenized, up to the whole text. A slow tokenizer does not report the positions of its tokens, so
    its texts are always tokenized whole.
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
    """A piece of a text: its tokens and their start positions in the text."""

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

    def index(self, position: int) -> int:
        """The number of the first token that begins at a position or later."""
        return int(np.searchsorted(self.starts_T, position))

    def seam(self) -> int:
        """The start of a token, OVERLAP characters before the end."""
        token = self.index(self.end - OVERLAP)
        return int(self.starts_T[token]) if token < len(self.starts_T) else self.end - OVERLAP

    def agrees(self, following: _Piece, seam: int) -> bool:
        (ids_T, starts_T), (their_ids_T, their_starts_T) = (
            (piece.ids_T[near], piece.starts_T[near])
            for piece in (self, following)
            for near in [slice(piece.index(seam - OVERLAP // 2), piece.index(seam + OVERLAP // 2))]
        )
        return (
            seam in starts_T
            and np.array_equal(ids_T, their_ids_T)
            and np.array_equal(starts_T, their_starts_T)
            and all((np.diff(piece.starts_T) >= 0).all() for piece in (self, following))
        )
