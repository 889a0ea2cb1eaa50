"""Detection of near-copies: texts that differ in spaces, capitals or punctuation, or in a few words.

The method is MinHash with banding (Broder 1997; Leskovec, Rajaraman and Ullman, ch. 3). For each text, the smallest
value of each of 48 hashes over its runs of words is kept. Two texts agree on one value with the probability that they
share a run (Jaccard's index J). Two texts are compared if they agree on all 4 values of one of 12 bands, which has
probability 1 - (1 - J⁴)¹². They are near-copies if they agree on half of the 48 values. One changed word in 100 gives J
= .94 and one in 20 gives J = .81; both are found. At J = .5, one pair in three is found.

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
# Numbers of words; in a script without spaces, of twice as many characters.
FEWEST_WORDS = 12  # a text with fewer words is a copy only if all of its words are equal
SHORT, SHORT_RUN, RUN = 64, 2, 3  # length of a short text, its run length, and that of longer texts
WORD = re.compile(rf"[{SPACELESS}]|[^\W{SPACELESS}]+")
CHARACTERS = 1 << 16  # hashed at once, to bound memory; runs across two parts are not used


class NearCopies:
    """Finds, for each of a sequence of texts, the first that it is a near-copy of. Needs about 1 kB per original."""

    def __init__(self) -> None:
        self._original_of: dict[int, int] = {}  # {hash of a band: number of the original}
        self._lowest_of: dict[int, np.ndarray] = {}  # uint16 [H] by number of the original
        self.texts = 0

    def original(self, text: str, lowest_H: np.ndarray | None = None) -> int:
        """The number, from 0, of the first text that this one is a near-copy of; its own number if there is none."""
        lowest_H = signature(text) if lowest_H is None else lowest_H
        number, brief_H = self.texts, lowest_H.astype(np.uint16)
        self.texts += 1
        bands = enumerate(lowest_H.reshape(BANDS, ROWS))
        keys = [number_of(bytes([band]) + lowest_R.tobytes()) for band, lowest_R in bands]
        for other in sorted({self._original_of[key] for key in keys if key in self._original_of}):
            if (self._lowest_of[other] == brief_H).mean() >= LEAST_SHARED:
                return other  # always an original, so that no chain of copies joins different texts
        self._lowest_of[number] = brief_H
        self._original_of |= dict.fromkeys(keys, number)
        return number

    def is_copy(self, text: str) -> bool:
        return self.original(text) != self.texts - 1


def signature(text: str) -> np.ndarray:
    """The smallest hashes [H] of the runs of words in a text, the same for texts that differ only in form."""
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
