"""Folding of text to one form, so that a phrase is found in any spelling. Uses only Unicode, no list of languages."""

from __future__ import annotations

import re
import unicodedata

from harvest.errors import InputError

# Apostrophes, quotation marks and hyphens become those of the keyboard; characters without a width are removed.
SAME = {"'": "‘’‚‛ʼʹ´′", '"': "“”„‟«»″", "-": "‐‑‒–—―−", "": "\u00ad\u200b\u200c\u200d\u2060\ufeff"}
# Scripts without spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, kana, ideographs.
SPACELESS = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
SPACELESS += "\U00020000-\U0003ffff"
JOINS = re.compile(f"[{SPACELESS}\uac00-\ud7af]")  # and Hangul, in which particles follow a noun without a space
JAMO_AFTER_THE_FIRST, HALF_WIDTH_MARKS = ("\u1160", "\u11ff"), "\uff9e\uff9f"


def folded(text: str) -> str:
    """The text without differences of case, width, ligatures, apostrophes and hyphens. Accents stay, but composed."""
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text)
        for one, others in SAME.items():
            for other in others:
                text = text.replace(other, one)
    text = text.casefold()
    return text if text.isascii() else unicodedata.normalize("NFC", text.replace("i\u0307", "i"))  # İ is I


class Phrase:
    """A phrase that is searched as whole words in any spacing, without its article.

    In scripts without spaces it is found anywhere. Raises InputError if the phrase has no word.
    """

    def __init__(self, phrase: str):
        words = re.sub(r"^(the|an?)\s+(?=\S)", "", folded(phrase).strip()).split()
        if not any(character.isalnum() for word in words for character in word):
            raise InputError(f"the phrase {phrase!r} has no word in it: give at least one word")
        self._pattern = re.compile(r"\s+".join(map(re.escape, words)))

    def held_by(self, text: str) -> bool:
        return bool(self._found(folded(text)))

    def mentions(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of each mention in the original text."""
        if not self.held_by(text):
            return []
        clusters = _clusters(text)
        forms = [folded(text[start:end]) for start, end in clusters]
        cluster = [number for number, form in enumerate(forms) for _ in form]  # cluster of each folded character
        return [
            (clusters[cluster[start]][0], clusters[cluster[end - 1]][1]) for start, end in self._found("".join(forms))
        ]

    def cut_from(self, text: str) -> str:
        """The text without mentions of the phrase."""
        ends, starts = zip(*[(0, 0), *self.mentions(text), (len(text), len(text))], strict=True)
        return " ".join(text[start:end] for start, end in zip(starts, ends[1:], strict=False))

    def _found(self, text: str) -> list[tuple[int, int]]:
        spans = (match.span() for match in self._pattern.finditer(text))
        return [
            span
            for span in spans
            if not _inside_word(text, span[0] - 1, span[0]) and not _inside_word(text, span[1], span[1] - 1)
        ]


def _inside_word(text: str, beyond: int, edge: int) -> bool:
    """Whether the character beyond an edge of the phrase, if there is one, belongs to the same word."""
    if not 0 <= beyond < len(text):
        return False
    character = text[beyond]
    is_word = character.isalnum() or character == "_" or unicodedata.category(character).startswith("M")
    return is_word and not JOINS.match(character) and not JOINS.match(text[edge])


def _clusters(text: str) -> list[tuple[int, int]]:
    """(start, end) of each character with its combining marks, so that folding them one by one gives the same text."""
    if text.isascii():
        return [(i, i + 1) for i in range(len(text))]
    starts = [i for i, character in enumerate(text) if not (i and _continues(character))]
    return list(zip(starts, [*starts[1:], len(text)], strict=True))


def _continues(character: str) -> bool:
    first, last = JAMO_AFTER_THE_FIRST
    return (
        unicodedata.category(character).startswith("M") or first <= character <= last or character in HALF_WIDTH_MARKS
    )
