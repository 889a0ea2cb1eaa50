"""Texts that are nearly the same: with other spaces, capitals or punctuation, or with a few words changed.

MinHash with banding (Broder 1997; Leskovec, Rajaraman and Ullman, ch. 3): of the runs of words in a text the smallest
under each of 48 hashes are kept; two texts agree on one as often as they share runs (Jaccard's index J). Compared are
those that agree on all 4 of one of 12 bands, which is 1 - (1 - J⁴)¹² of pairs, and near-copies those that agree on half
of all 48. One word changed in 100 leaves J = .94, one in 20 J = .81: both are found; at J = .5 it is one in three.

Shapes: W words, M runs, H hashes, R hashes of one band.
"""

from __future__ import annotations

import re
import zlib
from hashlib import blake2b

import numpy as np

from harvest.text.folding import SPACELESS, folded
from harvest.text.hashes import mixed

BANDS, ROWS = 12, 4
LEAST_SHARED = 0.5
# In words; in a script without spaces twice as many characters.
FEWEST_WORDS = 12  # of fewer, one makes another text: then only equal words make a copy
SHORT, SHORT_RUN, RUN = 64, 2, 3  # a text of fewer, and its runs; those of a longer one
WORD = re.compile(rf"[{SPACELESS}]|[^\W{SPACELESS}]+")
CHARACTERS = 1 << 16  # hashed at a time: bounds memory; a run across two is left out


class NearCopies:
    """Texts one after another, each with the first that it is a near-copy of. About a kilobyte a text that is none."""

    def __init__(self) -> None:
        self._original_of: dict[int, int] = {}  # of a band's hash
        self._lowest_of: dict[int, np.ndarray] = {}  # uint16 [H], of an original
        self.texts = 0

    def original(self, text: str, lowest_H: np.ndarray | None = None) -> int:
        """The number of the first text that this one is a near-copy of, counted from 0; its own where there is none."""
        lowest_H = signature(text) if lowest_H is None else lowest_H
        number, brief_H = self.texts, lowest_H.astype(np.uint16)
        self.texts += 1
        bands = enumerate(lowest_H.reshape(BANDS, ROWS))
        keys = [number_of(bytes([band]) + lowest_R.tobytes()) for band, lowest_R in bands]
        for other in sorted({self._original_of[key] for key in keys if key in self._original_of}):
            if (self._lowest_of[other] == brief_H).mean() >= LEAST_SHARED:
                return other  # a copy is not copied from: no chain of texts joins what is not alike
        self._lowest_of[number] = brief_H
        self._original_of |= dict.fromkeys(keys, number)
        return number

    def is_copy(self, text: str) -> bool:
        return self.original(text) != self.texts - 1


def signature(text: str) -> np.ndarray:
    """The smallest hashes [H] of the runs of words in a text: the same for texts that differ in form only."""
    lowest_H = np.full(len(FACTOR_H), np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, max(len(text), 1), CHARACTERS):
        plain = folded(text[start : start + CHARACTERS])
        words = WORD.findall(plain) or [plain.strip()]
        hash_W = np.array([zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words], np.uint64)
        of_a_word = 1 if sum(map(len, words)) > 1.5 * len(words) else 2
        width = of_a_word * (SHORT_RUN if len(words) < SHORT * of_a_word else RUN)
        width = len(words) if len(words) < FEWEST_WORDS * of_a_word else width
        run_M = mixed(np.lib.stride_tricks.sliding_window_view(hash_W, width) @ FACTOR_H[:width])
        lowest_H = np.minimum(lowest_H, (FACTOR_H[:, None] * run_M).min(1))
    return lowest_H


def number_of(content: bytes) -> int:
    """A hash of 64 bits."""
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "big")


FACTOR_H = mixed(np.arange(1, BANDS * ROWS + 1, dtype=np.uint64)) | np.uint64(1)
