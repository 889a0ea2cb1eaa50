"""Labelled texts as token windows: documents with labels, and words with their first letter.

Shapes: W windows, T tokens per window, N items (documents or words).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from harvest.errors import InputError
from harvest.text.documents import jsonl_records
from harvest.text.near_copies import NearCopies
from harvest.text.tokenized import tokenized

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPELLING = " has the first letter: {}\n"  # Chanin et al. 2024 and SAEBench


@dataclass(frozen=True)
class Passages:
    """Windows padded on the right, the positions that are used, and the item of each window."""

    tokens_WxT: np.ndarray  # int32
    counts_WxT: np.ndarray  # bool
    item_W: np.ndarray  # int64; every item has a position that is used


@dataclass(frozen=True)
class LabelledText:
    texts: list[str]
    labels: dict[str, np.ndarray]  # {field: str [N]}
    is_train_N: np.ndarray


def labelled_text(path: Path, fields: tuple[str, ...], n_documents: int, train_share: float, seed: int) -> LabelledText:
    """At most `n_documents` of a .jsonl with a `text` and a label (string, number or boolean) in each of `fields`.

    Documents are chosen by a hash of their text. They are split by the hash of the first of their near-copies, so that
    near-copies are all in training or all in test. Raises InputError for a line without a label.
    """
    records = []
    for number, record in jsonl_records(path):
        for field in fields:
            if not isinstance(record.get(field), (str, int, float)):
                keys = ", ".join(record)
                raise InputError(
                    f"--dataset {path}, line {number}: no label under the key {field!r} (the keys are {keys}): add it, "
                    "or choose another key with --label or --concepts"
                )
        records.append(record)
    if not records:
        raise InputError(f"--dataset {path}: there is no document in it: use another file")
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
    """A number from 0 to 1 that is uniform over texts and always the same for the same text."""
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=key.encode()).digest()
    return int.from_bytes(digest, "big") / 2**64


def document_passages(tokenizer, texts: list[str], tokens_each: int, seq_len: int, first: int) -> Passages:
    """The first tokens of each document, in windows of `seq_len` tokens that are used from position `first` on."""
    windows, item = [], []
    for number, document in enumerate(tokenized(tokenizer, texts, tokens_each)):
        if len(document) <= first:
            raise InputError(f"a document of {len(document)} tokens is too short: remove {texts[number]!r}")
        cut = document[:tokens_each]
        starts = [start for start in range(0, len(cut), seq_len) if len(cut) - start > first]
        windows += [cut[start : start + seq_len] for start in starts]
        item += [number] * len(starts)
    tokens_WxT, real_WxT = filled_up(windows, seq_len)
    return Passages(tokens_WxT, real_WxT & (np.arange(seq_len) >= first), np.array(item))


@dataclass(frozen=True)
class Spelling:
    """Words of one token, each preceded by examples of other words with their first letter."""

    words: list[str]
    letters_N: np.ndarray  # "a" to "z"
    is_train_N: np.ndarray  # equal for words that differ only in case or space
    passages: Passages  # only the position of the word is used
    n_examples: int  # examples before each word


def spelling(tokenizer, n_words: int, seq_len: int, train_share: float, seed: int) -> Spelling:
    """Prompts of at most `n_words` tokens of the vocabulary that consist of letters a to z, with or without a space.

    A prompt ends with its word. SAEBench continues it ("has the first letter:"), but this does not change a causal
    model at the word. There are as many examples as fit into a window of `seq_len` tokens, at most ten as in SAEBench.
    They are drawn from the training words. Raises InputError if none fits.
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
    count = min(10, (seq_len - 1) // longest, len(teachers) - 1)
    if count < 1:
        raise InputError(
            f"no spelling example fits before a word: examples have up to {longest} tokens, are drawn from "
            f"{len(teachers)} training words, and must fit into windows of {seq_len} tokens: raise --words, or leave "
            "absorption out of --metrics"
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
    """(tokens padded on the right, which of them are no padding). A causal model is not affected by this padding."""
    real_WxT = np.arange(length) < np.array([len(window) for window in windows])[:, None]
    tokens_WxT = np.zeros((len(windows), length), np.int32)
    tokens_WxT[real_WxT] = np.concatenate([np.asarray(window, np.int32) for window in windows])
    return tokens_WxT, real_WxT
