"""Text folded to one form, in which a phrase is found however it is written; pure Unicode, no list of languages."""

from __future__ import annotations

import re
import unicodedata

from harvest.errors import InputError

# Each as one of the keyboard's: apostrophes, quotation marks, hyphens; characters without a width are left out.
SAME = {"'": "‘’‚‛ʼʹ´′", '"': "“”„‟«»″", "-": "‐‑‒–—―−", "": "\u00ad\u200b\u200c\u200d\u2060\ufeff"}
# Scripts without spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, kana, ideographs.
SPACELESS = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
SPACELESS += "\U00020000-\U0003ffff"
JOINS = re.compile(f"[{SPACELESS}\uac00-\ud7af]")  # and Hangul, where particles follow a noun without a space
JAMO_AFTER_THE_FIRST, HALF_WIDTH_MARKS = ("\u1160", "\u11ff"), "\uff9e\uff9f"


def folded(text: str) -> str:
    """Case, width, ligatures, composed or decomposed accents, apostrophes and hyphens do not count; accents do."""
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text)
        for one, others in SAME.items():
            for other in others:
                text = text.replace(other, one)
    text = text.casefold()
    return text if text.isascii() else unicodedata.normalize("NFC", text.replace("i\u0307", "i"))  # İ is I


class Phrase:
    """A phrase as whole words, in any spacing and without its article; in scripts without spaces, anywhere.

    Raises InputError where there is no word in it.
    """

    def __init__(self, phrase: str):
        words = re.sub(r"^(the|an?)\s+(?=\S)", "", folded(phrase).strip()).split()
        if not any(character.isalnum() for word in words for character in word):
            raise InputError(f"the phrase {phrase!r} has no word in it: say what is to be found")
        self._pattern = re.compile(r"\s+".join(map(re.escape, words)))

    def held_by(self, text: str) -> bool:
        return bool(self._found(folded(text)))

    def mentions(self, text: str) -> list[tuple[int, int]]:
        """Where each begins and ends in the text as it is written."""
        if not self.held_by(text):
            return []
        clusters = _clusters(text)
        forms = [folded(text[start:end]) for start, end in clusters]
        cluster = [number for number, form in enumerate(forms) for _ in form]  # of each folded character
        return [
            (clusters[cluster[start]][0], clusters[cluster[end - 1]][1]) for start, end in self._found("".join(forms))
        ]

    def cut_from(self, text: str) -> str:
        """The text without it."""
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
    """Whether the character beyond the phrase's edge, if there is one, is of the same word."""
    if not 0 <= beyond < len(text):
        return False
    character = text[beyond]
    is_word = character.isalnum() or character == "_" or unicodedata.category(character).startswith("M")
    return is_word and not JOINS.match(character) and not JOINS.match(text[edge])


def _clusters(text: str) -> list[tuple[int, int]]:
    """Where each character begins and ends, with the marks that belong to it: folded alone, they give the same."""
    if text.isascii():
        return [(i, i + 1) for i in range(len(text))]
    starts = [i for i, character in enumerate(text) if not (i and _continues(character))]
    return list(zip(starts, [*starts[1:], len(text)], strict=True))


def _continues(character: str) -> bool:
    first, last = JAMO_AFTER_THE_FIRST
    return (
        unicodedata.category(character).startswith("M") or first <= character <= last or character in HALF_WIDTH_MARKS
    )
