"""Passages with a concept and comparable passages without it, as token windows.

The concept is given by a phrase and examples. A passage of the corpus is a window of a document that holds the phrase;
an example is read whole. Passages without the concept ("others") come from documents without the phrase, at most one
per document. The other of a window has the same number of tokens at the same position in its document. The other of an
example has the same number of whole sentences and a similar number of tokens. The two groups thus do not differ in
length, position or punctuation. Only one of several near-copies is used, because copies are not independent.

Shapes: W windows, T tokens per window, N passages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np

from harvest.errors import InputError
from harvest.text.chat import Chat
from harvest.text.documents import documents, jsonl_records
from harvest.text.folding import Phrase, folded
from harvest.text.near_copies import NearCopies
from harvest.text.passages import Passages, filled_up

OTHERS, MIN_OTHERS = 4, 120  # others per passage, and at least in total, if the text has so many
FEWEST = 3  # passages of either group, so that both can be split in three
MOST_DOCUMENTS = 100_000  # documents read of the corpus
MOST_CHARACTERS = 1 << 18  # characters read of a document, to bound memory
COMPARED = 20  # documents from which the other of an example is chosen by its length
SENTENCE = re.compile(r"""\S.*?(?:[.!?]["'”’)\]]*(?=\s)|$)""", re.MULTILINE)
NO_DOCUMENT = -1
REPEATED = 10  # tokens; shorter passages may be equal by chance


@dataclass(frozen=True)
class ConceptPassages:
    """N passages with the concept and others, in windows as in training."""

    passages: Passages
    phrase_WxT: np.ndarray  # bool: the tokens of the phrase; in others, the tokens at the same positions
    is_concept_N: np.ndarray
    document_N: np.ndarray  # number in the corpus; NO_DOCUMENT for texts of the user
    tokens_N: np.ndarray
    documents_read: int
    left_out: int  # texts of the user not used: near-copies, and others that hold the phrase
    near_copies: int  # documents and passages of the corpus not used because they are near-copies


@dataclass(frozen=True)
class _Passage:
    ids: list[int]
    is_phrase: np.ndarray
    document: int = NO_DOCUMENT
    start: int = 0  # token position in its document
    sentences: int = 0  # number of sentences of an example; 0 for a window


def gather(
    phrase: str,
    corpus: str | Iterable[str],
    tokenizer,
    seq_len: int,
    first: int,
    examples: Sequence[str] = (),
    against: Sequence[str] = (),
    most: int = 300,
    seed: int = 0,
    column: str | None = None,
) -> ConceptPassages:
    """Passages from at most `most` documents of the corpus that hold the phrase, from all examples, and others.

    The corpus is a text source, of which `column` is read if it is given, or its documents. Others come from `against`
    if given, or else from the corpus. A document
    that contains an example is not used.
    Raises InputError if there are too few passages of either group to split them in three.
    """
    wanted, rng = Phrase(phrase), np.random.default_rng(seed)
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} does not report the positions of its tokens: use a model with a fast tokenizer"
        )
    source = Path(corpus).name if isinstance(corpus, str) else "the imported text"
    documents_read = texts_of(corpus, column, tokenizer) if isinstance(corpus, str) else corpus
    seen, same = NearCopies(), NearCopies()  # near-copies among texts, and among their passages without the phrase
    texts = [text for text in examples if not seen.is_copy(wanted.cut_from(text))]
    concept = [_own_text(text, wanted, tokenizer, first) for text in texts]
    left_out = len(examples) - len(texts)
    holders, pool, read, near_copies = _read(documents_read, wanted, texts, most, rng, seen)
    windows = [_window(number, text, wanted, tokenizer, seq_len, first, rng) for number, text in holders]
    windows = [window for window in windows if len(window.ids) > first]
    new = [w for w in windows if not _repeats(np.array(w.ids)[~w.is_phrase], tokenizer, same)]
    concept, near_copies = [*concept, *new], near_copies + len(windows) - len(new)
    if against:
        pool = [(NO_DOCUMENT, text) for text in against if not (wanted.held_by(text) or seen.is_copy(text))]
        left_out += len(against) - len(pool)
    if len(concept) < FEWEST:
        advice = (
            "raise --passages"
            if len(holders) >= most
            else "give examples, one per line (--examples FILE), or another phrase"
        )
        holding = f"{len(holders)} of {read:,} documents of {source} that were read hold it"
        raise InputError(
            f"{phrase!r}: {FEWEST} passages are needed, but there are {len(concept)}: {holding} (without near-copies), "
            f"and {len(texts)} examples are given: {advice}"
        )
    others = _others(concept, pool, tokenizer, first, rng, same)
    if len(others) < FEWEST:
        source = "--against FILE" if against else source
        advice = "give more" if against else "give texts without it (--against FILE)"
        raise InputError(
            f"{source} has only {len(others)} texts without {phrase!r}, but at least {FEWEST} are needed and 100 are "
            f"better: {advice}"
        )
    passages = [*concept, *others]
    tokens_WxT, real_WxT, item_W, phrase_WxT = _windows_of(passages, seq_len, first)
    return ConceptPassages(
        Passages(tokens_WxT, real_WxT & (np.arange(seq_len) >= first), item_W),
        phrase_WxT,
        np.arange(len(passages)) < len(concept),
        np.array([passage.document for passage in passages]),
        np.array([len(passage.ids) for passage in passages]),
        read,
        left_out,
        near_copies,
    )


def texts_in(path: Path, flag: str) -> list[str]:
    """The texts of a .txt, one per line, or of a .jsonl. Raises InputError, naming the flag, if there is none."""
    if not path.is_file():
        raise InputError(f"{flag} {path}: there is no such file: give a .txt or .jsonl file")
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        try:
            texts = [record["text"].strip() for _, record in jsonl_records(path)]
        except InputError as error:
            raise InputError(str(error).replace("--dataset", flag)) from error
    elif path.suffix == ".txt":
        try:
            texts = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except UnicodeDecodeError as error:
            raise InputError(f"{flag} {path}: not UTF-8 (byte {error.start}): save it as UTF-8") from error
    else:
        raise InputError(
            f"{flag} {path}: must be a .txt with one text per line, or a .jsonl with a text under the key 'text'"
        )
    if not any(texts):
        raise InputError(f"{flag} {path}: there is no text in it: write one per line")
    return [text for text in texts if text]


def sentences_of(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence. A line break also ends a sentence."""
    return [match.span() for match in SENTENCE.finditer(text)]


def _read(
    corpus: Iterable[str], phrase: Phrase, examples: list[str], most: int, rng: np.random.Generator, seen: NearCopies
) -> tuple[list[tuple[int, str]], list[tuple[int, str]], int, int]:
    """(documents with the phrase, a random sample of those without, number read, number of near-copies not used)."""
    holders: list[tuple[int, str]] = []
    pool: dict[int, tuple[int, str]] = {}
    room, without, number = 3 * max(OTHERS * (most + len(examples)), MIN_OTHERS), 0, -1
    copies = 0
    for number, text in enumerate(islice(corpus, MOST_DOCUMENTS)):
        text = text[:MOST_CHARACTERS]
        if phrase.held_by(text):
            if seen.is_copy(phrase.cut_from(text)):
                copies += 1
                continue
            holders.append((number, text))
            if len(holders) == most:
                break
        elif text.strip():
            slot = without if without < room else int(rng.integers(without + 1))  # reservoir sampling
            without += 1
            if slot < room:
                pool[slot] = (number, text)
    given = [folded(example) for example in examples]
    new, others = (
        [(number, text) for number, text in numbered if not any(example in folded(text) for example in given)]
        for numbered in (holders, pool.values())
    )
    single = [other for other in others if not seen.is_copy(other[1])]
    copies += len(others) - len(single)
    return new, [single[i] for i in rng.permutation(len(single))], number + 1, copies


def texts_of(corpus: str, column: str | None, tokenizer) -> Iterator[str]:
    """The documents of a text source as texts, also if they are token ids or chats."""
    for document in documents(corpus, column=column):
        if isinstance(document, Chat):
            yield document.text
        else:
            yield document if isinstance(document, str) else tokenizer.decode(document)


def _tokenized(tokenizer, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    encoded = tokenizer(
        text, add_special_tokens=False, return_attention_mask=False, return_offsets_mapping=True, verbose=False
    )
    return encoded["input_ids"], encoded["offset_mapping"]


def _tokens_on(mentions: Iterable[tuple[int, int]], offsets: list[tuple[int, int]]) -> np.ndarray:
    """Which tokens overlap a mention of the phrase, bool [T]."""
    start_T, end_T = np.array(offsets, np.int64).reshape(-1, 2).T
    is_phrase_T = np.zeros(len(offsets), bool)
    for start, end in mentions:
        is_phrase_T |= (start_T < end) & (end_T > start)
    return is_phrase_T


def _own_text(text: str, phrase: Phrase, tokenizer, first: int) -> _Passage:
    ids, offsets = _tokenized(tokenizer, text)
    if len(ids) <= first:
        raise InputError(f"{text!r} (--examples) has no token after the first, which is not used: remove this example")
    return _Passage(ids, _tokens_on(phrase.mentions(text), offsets), sentences=len(sentences_of(text)))


def _window(
    number: int, text: str, phrase: Phrase, tokenizer, seq_len: int, first: int, rng: np.random.Generator
) -> _Passage:
    """A random window on a random mention of the phrase, if possible with the whole phrase at positions in use."""
    ids, offsets = _tokenized(tokenizer, text)
    mentions = phrase.mentions(text)
    mention = mentions[rng.integers(len(mentions))]
    on_it = np.flatnonzero(_tokens_on([mention], offsets))
    begin, end = int(on_it[0]), int(on_it[-1]) + 1
    if end - begin > seq_len - first:
        raise InputError(
            f"{text[slice(*mention)]!r} is {end - begin} tokens, but a window of this run has room for only "
            f"{seq_len - first}: search for a shorter phrase"
        )
    lowest = max(0, end - seq_len)
    start = int(rng.integers(lowest, max(lowest, min(begin - first, len(ids) - seq_len)) + 1))
    cut = slice(start, start + seq_len)
    return _Passage(ids[cut], _tokens_on(mentions, offsets)[cut], number, start)


def _others(
    concept: list[_Passage],
    pool: list[tuple[int, str]],
    tokenizer,
    first: int,
    rng: np.random.Generator,
    same: NearCopies,
) -> list[_Passage]:
    """Others for each passage in turn, until there are enough or the pool is used up."""
    ids_of = cache(lambda text: _tokenized(tokenizer, text)[0])
    unused = list(pool)
    others: list[_Passage] = []
    while unused and len(others) < max(OTHERS * len(concept), MIN_OTHERS):
        like, start = concept[len(others) % len(concept)], 0
        length = len(like.ids)
        if like.sentences:
            compared = rng.choice(len(unused), min(COMPARED, len(unused)), replace=False)
            runs = [ids_of(_sentence_run(unused[j][1], like.sentences, rng)) for j in compared]
            nearest = int(np.argmin([abs(len(ids) - length) for ids in runs]))
            (number, _), ids = unused.pop(compared[nearest]), runs[nearest]
        else:
            longest = max(range(len(unused)), key=lambda j: len(unused[j][1]))
            long_enough = (j for j, (_, text) in enumerate(unused) if len(ids_of(text)) >= like.start + length)
            number, text = unused.pop(next(long_enough, longest))
            start = min(like.start, max(0, len(ids_of(text)) - length))
            ids = ids_of(text)[start : start + length]
        if len(ids) > first and not _repeats(ids, tokenizer, same):
            same_positions = np.zeros(len(ids), bool)
            same_positions[:length] = like.is_phrase[: len(ids)]
            others.append(_Passage(ids, same_positions, number, start))
    return others


def _repeats(ids: Sequence[int] | np.ndarray, tokenizer, same: NearCopies) -> bool:
    return len(ids) >= REPEATED and same.is_copy(tokenizer.decode(ids))


def _sentence_run(text: str, count: int, rng: np.random.Generator) -> str:
    """`count` consecutive sentences from a random position in a text, or all if it has fewer."""
    spans = sentences_of(text)
    begin = int(rng.integers(max(1, len(spans) - count + 1)))
    run = spans[begin : begin + count]
    return text[run[0][0] : run[-1][1]]


def _windows_of(passages: list[_Passage], seq_len: int, first: int) -> tuple[np.ndarray, ...]:
    """(tokens, which of them are no padding, the passage of each window, the tokens of the phrase)."""
    windows, item, is_phrase_WxT = [], [], []
    for number, passage in enumerate(passages):
        for start in range(0, len(passage.ids), seq_len):
            if len(window := passage.ids[start : start + seq_len]) > first:
                windows.append(window)
                item.append(number)
                is_phrase_WxT.append(np.resize(passage.is_phrase[start : start + seq_len], seq_len))
    tokens_WxT, real_WxT = filled_up(windows, seq_len)
    return tokens_WxT, real_WxT, np.array(item), np.array(is_phrase_WxT) & real_WxT
