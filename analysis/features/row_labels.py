"""What is known of a store's rows: labels of their documents, the class of their token, their position.

Shapes: G documents, V vocabulary, P positions of a window with a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.features.activations import Chunk
from analysis.features.near_copies import Originals
from harvest.text.windows import jsonl_records

MOST_LABELS = 1000  # a field with more values is no label
POSITIONS = 16  # as many stretches of a window
TOKEN_CLASSES = ["start of a word", "start of a capitalized word", "rest of a word", "number", "punctuation", "space"]


def labels_of(corpus: str, tokenizer, positions: int) -> dict[str, Labels]:
    """By name: each field of a .jsonl corpus with two to MOST_LABELS texts, `token class`, `position` if several."""
    named = document_labels(Path(corpus)) if corpus.endswith((".jsonl", ".jsonl.gz")) else {}
    stretches = min(POSITIONS, positions)
    named["token class"] = Labels("token", token_classes(tokenizer), TOKEN_CLASSES)
    if positions > 1:
        codes_P = np.arange(positions) * stretches // positions
        named["position"] = Labels("position", codes_P, list(map(str, range(stretches))))
    return named


def document_labels(path: Path) -> dict[str, Labels]:
    """A field is let go at the first document without a text there, or with one too many: no text is kept but names."""
    codes: dict[str, list[int]] = {}
    seen: dict[str, dict[str, int]] = {}
    for number, (_, record) in enumerate(jsonl_records(path)):
        if not number:
            codes = {name: [] for name, value in record.items() if name != "text" and isinstance(value, str)}
            seen = {name: {} for name in codes}
        if not codes:
            break
        for name in list(codes):
            value, of = record.get(name), seen[name]
            if isinstance(value, str) and (value in of or len(of) < MOST_LABELS):
                codes[name].append(of.setdefault(value, len(of)))
            else:
                del codes[name]
    found = {}
    for name, codes_G in codes.items():
        names, place = np.unique(list(seen[name]), return_inverse=True)
        if len(names) > 1:
            found[name] = Labels("document", place[codes_G], names.tolist())
    return found


def token_classes(tokenizer) -> np.ndarray:
    """Of each token of the vocabulary the index of its class; one that is no text counts as punctuation."""
    classes_V = np.zeros(len(tokenizer), np.int64)
    for number, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))):
        text = tokenizer.convert_tokens_to_string([token])
        word = text.strip()
        if not word:
            name = "space"
        elif word[0].isdecimal():
            name = "number"
        elif not word[0].isalpha():
            name = "punctuation"
        elif not (text[0].isspace() or token[0] in "Ġ▁"):
            name = "rest of a word"
        else:
            name = "start of a capitalized word" if word[0].isupper() else "start of a word"
        classes_V[number] = TOKEN_CLASSES.index(name)
    return classes_V


SHUFFLES = 5


@dataclass(frozen=True)
class Labels:
    """What is known of rows by their document, their token or their position; `codes` are indices into `names`.

    Firings come in runs, on few documents and on few token types: labels dealt to rows anew would find specialization
    in every feature. So the null deals codes anew to documents, or to token types, and shifts the positions of a
    window, all by as many and around its end. Near-copies of documents with one label, and of windows, are one.
    """

    by: str  # "document", "token", "position"
    codes: np.ndarray  # [G], [V] or [P]
    names: list[str]

    def units(self, of: Originals) -> np.ndarray:
        """The number [U] of the group that the null keeps together, for each window, document or token."""
        if self.by == "position":
            return of.window_W
        if self.by == "token":
            return np.arange(len(self.codes))
        alone_G = np.arange(len(self.codes))
        alone_G[: len(of.document_G)] = of.document_G[: len(alone_G)]
        return alone_G * len(self.names) + self.codes

    def dealt(self, unit_U: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Codes of documents or tokens, or shifts of windows: as they are, and SHUFFLES times anew, [1 + S, U]."""
        _, first, unit_U = np.unique(unit_U, return_index=True, return_inverse=True)
        if self.by == "position":
            drawn_SxU = rng.integers(0, len(self.codes), (SHUFFLES, len(first)))
            return np.stack([np.zeros(len(unit_U), int), *drawn_SxU[:, unit_U]])
        return np.stack([self.codes, *(rng.permutation(self.codes[first])[unit_U] for _ in range(SHUFFLES))])

    def of_rows(self, chunk: Chunk, dealt_SxU: np.ndarray) -> np.ndarray:
        """The labels of a chunk's rows, and of the null: [1 + S, N]."""
        if self.by == "position":
            positions = len(self.codes)
            return self.codes[(chunk.position_N + dealt_SxU[:, chunk.row_N // positions]) % positions]
        return dealt_SxU[:, chunk.document_N if self.by == "document" else chunk.token_N]

    def units_of_rows(self, chunk: Chunk, unit_U: np.ndarray) -> np.ndarray:
        """The number [N] of the group that the null keeps together, of each row; a window is split by label."""
        if self.by == "position":
            return unit_U[chunk.row_N // len(self.codes)] * len(self.names) + self.codes[chunk.position_N]
        return unit_U[chunk.document_N if self.by == "document" else chunk.token_N]
