"""Texts of which something is known, as token windows: labelled documents, words of which the first letter counts.

Shapes: W windows, T tokens a window, N items (documents, words).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from harvest.errors import InputError
from harvest.text.near_copies import NearCopies
from harvest.text.tokenized import tokenized
from harvest.text.windows import jsonl_records

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPELLING = " has the first letter: {}\n"  # Chanin et al. 2024 and SAEBench


@dataclass(frozen=True)
class Passages:
    """Windows filled up on the right, which rows of them count, and the item to which these belong."""

    tokens_WxT: np.ndarray  # int32
    counts_WxT: np.ndarray  # bool
    item_W: np.ndarray  # int64; every item has a row that counts


@dataclass(frozen=True)
class LabelledText:
    texts: list[str]
    labels: dict[str, np.ndarray]  # of each field, str [N]
    is_train_N: np.ndarray


def labelled_text(path: Path, fields: tuple[str, ...], n_documents: int, train_share: float, seed: int) -> LabelledText:
    """At most `n_documents` of a .jsonl with a `text` and, under each of `fields`, a string, number or boolean.

    Chosen by a hash of their text and divided by that of the first of their near-copies, so that these are never on
    both sides of `is_train`. Raises InputError for a line without a label.
    """
    records = []
    for number, record in jsonl_records(path):
        for field in fields:
            if not isinstance(record.get(field), (str, int, float)):
                keys = ", ".join(record)
                raise InputError(f"--dataset {path}, line {number}: no label under the key {field!r}; it has {keys}")
        records.append(record)
    if not records:
        raise InputError(f"--dataset {path}: there is no document in it")
    records.sort(key=lambda record: _share(record["text"], f"choice {seed}"))
    chosen = records[:n_documents]
    texts, near_copies = [record["text"] for record in chosen], NearCopies()
    originals = [texts[near_copies.original(text)] for text in texts]
    return LabelledText(
        texts,
        {field: np.array([str(record[field]) for record in chosen]) for field in fields},
        np.array([_share(text, f"split {seed}") < train_share for text in originals]),
    )


def _share(text: str, key: str) -> float:
    """Between 0 and 1, as if drawn, and the same for the same text."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=key.encode()).digest()
    return int.from_bytes(digest, "big") / 2**64


def document_passages(tokenizer, texts: list[str], tokens_each: int, seq_len: int, first: int) -> Passages:
    """The first tokens of each document in windows as in training: `seq_len` long, positions from `first` on count."""
    windows, item = [], []
    for number, document in enumerate(tokenized(tokenizer, texts, tokens_each)):
        if len(document) <= first:
            raise InputError(f"a document of {len(document)} tokens has none to read: leave {texts[number]!r} out")
        cut = document[:tokens_each]
        starts = [start for start in range(0, len(cut), seq_len) if len(cut) - start > first]
        windows += [cut[start : start + seq_len] for start in starts]
        item += [number] * len(starts)
    tokens_WxT, real_WxT = filled_up(windows, seq_len)
    return Passages(tokens_WxT, real_WxT & (np.arange(seq_len) >= first), np.array(item))


@dataclass(frozen=True)
class Spelling:
    """Words of one token, each after some other words with their first letter."""

    words: list[str]
    letters_N: np.ndarray  # "a" to "z"
    is_train_N: np.ndarray  # words that differ in case or space only are on one side
    passages: Passages  # the word's own row counts
    n_examples: int  # before each word


def spelling(tokenizer, n_words: int, n_examples: int | None, seq_len: int, train_share: float, seed: int) -> Spelling:
    """At most `n_words` of the vocabulary's tokens made of letters a to z, with a space before them or without.

    A prompt ends at its word: what SAEBench lets follow ("has the first letter:") cannot change a causal model there.
    By default as many examples as fit into a window of `seq_len`, at most ten (SAEBench's). They are drawn from the
    training words. Raises InputError where they do not fit.
    """
    tokens: dict[str, int] = {}
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        text = tokenizer.convert_tokens_to_string([token])
        if (word := text.removeprefix(" ").lower()) and set(word) <= set(LETTERS):
            tokens.setdefault(text, number)
    words = sorted(tokens, key=lambda word: _share(word, f"choice {seed}"))[:n_words]
    letters = [word.strip()[0].lower() for word in words]
    is_train = [_share(word.strip().lower(), f"split {seed}") < train_share for word in words]
    teachers = [
        [tokens[word], *tokenizer(SPELLING.format(letter.upper()), add_special_tokens=False)["input_ids"]]
        for word, letter, train in zip(words, letters, is_train, strict=True)
        if train
    ]
    longest = max(map(len, teachers), default=seq_len)
    fit = min((seq_len - 1) // longest, len(teachers) - 1)
    count = min(10, fit) if n_examples is None else n_examples
    if not 0 < count <= fit:
        raise InputError(
            f"--icl-examples {count}: at most {max(fit, 0)} of up to {longest} tokens, drawn from {len(teachers)} "
            f"training words, fit into the windows of {seq_len} tokens that the run was trained on"
        )
    rng, windows = random.Random(seed), []
    for word in words:
        others = [example for example in rng.sample(teachers, count + 1) if example[0] != tokens[word]][:count]
        windows.append([*sum(others, []), tokens[word]])
    tokens_WxT, real_WxT = filled_up(windows, max(map(len, windows)))
    is_word_WxT = np.arange(tokens_WxT.shape[1]) == real_WxT.sum(1, keepdims=True) - 1
    passages = Passages(tokens_WxT, is_word_WxT, np.arange(len(words)))
    return Spelling(words, np.array(letters), np.array(is_train), passages, count)


def filled_up(windows: Sequence[Sequence[int] | np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, which of them are real); what stands behind them a causal model does not see."""
    real_WxT = np.arange(length) < np.array([len(window) for window in windows])[:, None]
    tokens_WxT = np.zeros((len(windows), length), np.int32)
    tokens_WxT[real_WxT] = np.concatenate([np.asarray(window, np.int32) for window in windows])
    return tokens_WxT, real_WxT
