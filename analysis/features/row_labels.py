"""What is known of a store's rows: labels of their documents, the class of their token, their position.

Shapes: G documents, V vocabulary, P positions of a window with a row.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from analysis.features.store_pass import Labels
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
