"""Labels of a store's rows: those of their documents, the class of their token, and their position.

Shapes: G documents, V vocabulary, P positions of a window that have a row, N rows, U units, S shuffles.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.features.activations import Chunk
from analysis.features.near_copies import Originals
from harvest.imports.row_names import RowNames
from harvest.text.documents import json_records

MOST_LABELS = 1000  # a field with more different values is not used as a label
POSITIONS = 16  # intervals that a window is divided into, at most
TOKEN_CLASSES = ["start of a word", "start of a capitalized word", "rest of a word", "number", "punctuation", "space"]
SHUFFLES = 5


def labels_of(
    corpus: str, tokenizer, positions: int, first: int, text_columns: Collection[str] = ("text",)
) -> dict[str, Labels]:
    """Sets of labels by name: text fields of a .jsonl corpus, `token class`, and `position` if windows have several.

    Rows without a text (RowNames) have no classes of tokens.

    A field is used if every document has it and it has from two to MOST_LABELS different values, except those of
    `text_columns`, which were read as the text. `first` is the first position of a window that has a row: positions
    are counted from 0, as in the window.
    """
    named = document_labels(Path(corpus), text_columns) if corpus.endswith((".jsonl", ".jsonl.gz")) else {}
    stretches = min(POSITIONS, positions)
    if not isinstance(tokenizer, RowNames):
        named["token class"] = Labels("token", token_classes(tokenizer), TOKEN_CLASSES)
    if positions > 1:
        codes_P = np.arange(positions) * stretches // positions
        named["position"] = Labels(
            "position", codes_P, [stretch(first + np.flatnonzero(codes_P == code)) for code in range(stretches)]
        )
    return named


def stretch(position_N: np.ndarray) -> str:
    return str(position_N[0]) if len(position_N) == 1 else f"{position_N[0]} to {position_N[-1]}"


def document_labels(path: Path, text_columns: Collection[str] = ("text",)) -> dict[str, Labels]:
    """The fields of a .jsonl corpus that are labels.

    A field is dropped at the first document without a text in it, or with one value too many: memory is bounded. A
    value must have two documents on average.
    """
    codes: dict[str, list[int]] = {}
    seen: dict[str, dict[str, int]] = {}
    for number, (_, record) in enumerate(json_records(path)):
        if not number:
            codes = {name: [] for name, value in record.items() if name not in text_columns and isinstance(value, str)}
            seen = {name: {} for name in codes}
        if not codes:
            break
        for name in list(codes):
            value, values = record.get(name), seen[name]
            if isinstance(value, str) and (value in values or len(values) < MOST_LABELS):
                codes[name].append(values.setdefault(value, len(values)))
            else:
                del codes[name]
    labels = {}
    for name, codes_G in codes.items():
        names, place = np.unique(list(seen[name]), return_inverse=True)
        if 1 < len(names) <= len(codes_G) / 2:  # titles, of which each document has its own, group nothing
            labels[name] = Labels("document", place[codes_G], names.tolist())
    return labels


def token_classes(tokenizer) -> np.ndarray:
    """The index of each token's class in TOKEN_CLASSES, [V]. A token that is not text counts as punctuation."""
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


@dataclass(frozen=True)
class Labels:
    """Labels of rows by their document, token or position. `codes` are indices into `names`.

    The firings of a feature are concentrated on few documents and few tokens. If labels were shuffled over rows, every
    feature would therefore look specialized. Instead, the null shuffles labels over documents or over tokens, and
    rotates the positions within each window. Near-copies of a document with the same label, and near-copies of a
    window, are one unit and get the same shuffled label.
    """

    by: str  # "document", "token", "position"
    codes: np.ndarray  # [G], [V] or [P]
    names: list[str]

    def units(self, originals: Originals) -> np.ndarray:
        """For each window, document or token, the index of the unit with which it is shuffled, [U]."""
        if self.by == "position":
            return originals.window_W
        if self.by == "token":
            return np.arange(len(self.codes))
        alone_G = np.arange(len(self.codes))
        alone_G[: len(originals.document_G)] = originals.document_G[: len(alone_G)]
        return alone_G * len(self.names) + self.codes

    def shuffled(self, unit_U: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Codes of documents or tokens, or rotations of windows: the true ones, then SHUFFLES shuffles, [1 + S, U]."""
        _, first, unit_U = np.unique(unit_U, return_index=True, return_inverse=True)
        if self.by == "position":
            drawn_SxU = rng.integers(0, len(self.codes), (SHUFFLES, len(first)))
            return np.stack([np.zeros(len(unit_U), int), *drawn_SxU[:, unit_U]])
        return np.stack([self.codes, *(rng.permutation(self.codes[first])[unit_U] for _ in range(SHUFFLES))])

    def of_rows(self, chunk: Chunk, codes_SxU: np.ndarray) -> np.ndarray:
        """The true labels of a chunk's rows, then the shuffled ones, [1 + S, N]. `codes_SxU` is from `shuffled`."""
        if self.by == "position":
            positions = len(self.codes)
            return self.codes[(chunk.position_N + codes_SxU[:, chunk.window_N]) % positions]
        return codes_SxU[:, chunk.document_N if self.by == "document" else chunk.token_N]

    def units_of_rows(self, chunk: Chunk, unit_U: np.ndarray) -> np.ndarray:
        """The unit that each row is shuffled with, as a number, [N]. For positions, a window has one unit per label."""
        if self.by == "position":
            return unit_U[chunk.window_N] * len(self.names) + self.codes[chunk.position_N]
        return unit_U[chunk.document_N if self.by == "document" else chunk.token_N]
