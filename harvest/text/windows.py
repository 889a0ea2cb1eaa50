"""Token windows of a text source, always the same for the same text, tokenizer and request. Does not import torch.

Shapes: W windows, T tokens per window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from harvest.errors import InputError
from harvest.request import HarvestRequest
from harvest.text.documents import Reading, documents
from harvest.text.near_copies import NearCopies, number_of, signature
from harvest.text.tokenized import LONG, tokenized

BATCH_DOCUMENTS, BATCH_CHARACTERS = 256, 1 << 20  # tokenized at once, to bound memory


@dataclass(frozen=True)
class Windows:
    """Token windows, and the number of the document that each begins in."""

    tokens_WxT: np.ndarray  # int32
    documents_W: np.ndarray  # int32
    others: dict[str, np.ndarray] = field(default_factory=dict)  # [W, T] each: further arrays of a shard, by name

    def part(self, windows: slice) -> Windows:
        others = {name: array_WxT[windows] for name, array_WxT in self.others.items()}
        return Windows(self.tokens_WxT[windows], self.documents_W[windows], others)


def token_windows(
    dataset_location: str, tokenizer, request: HarvestRequest, reading: Reading | None = None
) -> dict[str, Windows]:
    """Windows of exactly `seq_len` tokens, {"train": ..., "held_out": ...}, read from the start of the text.

    Windows of a document are consecutive. The rest of a document is dropped, and no special token is added. A special
    token in the text ends a window, and is in none unless the request keeps special tokens. If the request packs, the
    documents of a split are joined, and windows go on over the separators, which have no row. Whole
    documents are held out, chosen by a hash of their words. Near-copies of a document go to the same split. Only if one
    split would be empty, because all documents are made from one template, near-copies are split, too. There are fewer
    windows than requested if the text is too short. If all windows are held out, there is no "train". Raises InputError
    if a split has no window.
    """
    reading = Reading() if reading is None else reading
    splits = _filled(dataset_location, tokenizer, request, reading)
    if reading.near_copies and any(filling.is_empty for filling in splits.values()):
        reading.copies_together = False
        splits = _filled(dataset_location, tokenizer, request, reading)
    if not reading.documents:
        raise InputError(f"--dataset {dataset_location}: there is no document in it: use another text")
    for name, filling in splits.items():
        if filling.is_empty:
            held_out_share = "smaller" if name == "train" else "larger"
            raise InputError(
                f"--dataset {dataset_location}: there is no {name} window of {request.seq_len} tokens: of its "
                f"{reading.documents:,} documents {filling.documents:,} belong to {name}, and the longest has "
                f"{filling.longest:,} tokens. "
                f"Use more or longer documents, a shorter --seq-len or a {held_out_share} --held-out"
            )
    windows = {name: filling.windows(special(tokenizer, request)) for name, filling in splits.items()}
    reading.tokens = sum(split.tokens_WxT.size for split in windows.values())
    reading.lost_tokens = sum(filling.lost for filling in splits.values())
    return windows


def _filled(location: str, tokenizer, request: HarvestRequest, reading: Reading) -> dict[str, _Filling]:
    windows = {"train": request.training_windows, "held_out": request.n_samples - request.training_windows}
    separator = separator_of(tokenizer, location) if request.pack else None
    splits = {split: _Filling(count, request.seq_len, separator) for split, count in windows.items() if count}
    ends = special(tokenizer, request)
    for batch in _batches(_divided(location, request, reading)):
        chosen = [(number, document, splits[split]) for number, document, split in batch if splits[split].missing]
        if not chosen:
            continue
        enough = request.seq_len * max(filling.missing for _, _, filling in chosen)
        texts = [document for _, document, _ in chosen if isinstance(document, str)]
        ids = iter(tokenized(tokenizer, texts, enough) if texts else ())
        for number, document, filling in chosen:
            ids_T = np.asarray(next(ids) if isinstance(document, str) else document, np.int32)
            filling.add(number, [ids_T] if request.pack else parts_between(ids_T, ends))
        if not any(filling.missing for filling in splits.values()):
            break
    return splits


def special(tokenizer, request: HarvestRequest) -> np.ndarray:
    """The tokens that have no row, because they only structure a text: BOS, EOS, padding, turns of a chat.

    The token of unknown words is none of them, unless it is also one of these.
    """
    known = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    ids = [token for token in tokenizer.all_special_ids if token != tokenizer.unk_token_id or token in known]
    return np.array([] if request.special_tokens else ids, np.int64)


def parts_between(ids_T: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    """The parts of a document between the tokens that end a window."""
    at = np.flatnonzero(np.isin(ids_T, ends))
    first, *others = np.split(ids_T, at)
    return [first, *(part[1:] for part in others)]


def separator_of(tokenizer, location: str) -> int:
    """The token that a model knows between two texts. Raises InputError if its tokenizer has none."""
    known = (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.bos_token_id)
    found = next((token for token in known if token is not None), None)
    if found is None:
        raise InputError(f"--pack: the tokenizer of {location} has no token that separates texts: leave --pack out")
    return found


class _Filling:
    """Collects the windows of one split. With a `separator`, documents are joined by it and windows go on over it."""

    def __init__(self, quota: int, seq_len: int, separator: int | None):
        self.missing, self.seq_len, self.separator = quota, seq_len, separator
        self.tokens: list[np.ndarray] = []
        self.origins: list[np.ndarray] = []
        self.rest_2xT = np.empty((2, 0), np.int32)  # tokens and their documents
        self.documents, self.longest, self.lost = 0, 0, 0

    @property
    def is_empty(self) -> bool:
        return not any(map(len, self.tokens))

    def add(self, document: int, parts: Sequence[np.ndarray]) -> None:
        self.documents += 1
        for ids_T in parts:
            if not self.missing:
                break
            self.longest = max(self.longest, len(ids_T))
            if self.separator is not None:
                ids_T = np.append(ids_T, np.int32(self.separator))
            tokens_2xT = np.append(self.rest_2xT, [ids_T, np.full_like(ids_T, document)], 1)
            count = min(tokens_2xT.shape[1] // self.seq_len, self.missing)
            self.missing -= count
            tokens_WxT, origins_WxT = tokens_2xT[:, : count * self.seq_len].reshape(2, count, self.seq_len)
            self.tokens.append(tokens_WxT)
            self.origins.append(origins_WxT)
            rest_2xT = tokens_2xT[:, count * self.seq_len :]
            if self.separator is not None:
                self.rest_2xT = rest_2xT
            elif self.missing:
                self.lost += rest_2xT.shape[1]

    def windows(self, without_row: np.ndarray) -> Windows:
        """The windows. Those of joined documents keep the document of each token, and no row of some tokens."""
        tokens_WxT, origins_WxT = np.concatenate(self.tokens), np.concatenate(self.origins)
        others = {}
        if self.separator is not None:
            others = {"kept": ~np.isin(tokens_WxT, without_row), "token_documents": origins_WxT}
        return Windows(tokens_WxT, origins_WxT[:, 0], others)


def _divided(location: str, request: HarvestRequest, reading: Reading) -> Iterator[tuple[int, str | np.ndarray, str]]:
    """(number, document, split) of each document."""
    near_copies, splits = NearCopies(), list[str]()
    reading.documents = reading.near_copies = 0
    for number, document in enumerate(documents(location, reading, request.text_column)):
        text = document if isinstance(document, str) else " ".join(map(str, document))  # ids are compared like words
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"--dataset {location}: document {number} is not valid Unicode ({error}): correct it"
            ) from error
        lowest_H = signature(text)
        original = near_copies.original(text, lowest_H)
        split = "held_out" if number_of(lowest_H.tobytes()) / 2**64 < request.held_out else "train"
        splits.append(splits[original] if reading.copies_together and original < number else split)
        reading.documents += 1
        reading.near_copies += original < number and bool(text.strip())
        yield number, document, splits[-1]


def _batches(
    divided: Iterable[tuple[int, str | np.ndarray, str]],
) -> Iterator[list[tuple[int, str | np.ndarray, str]]]:
    """Batches of documents to tokenize. A long document is a batch by itself."""
    batch: list[tuple[int, str | np.ndarray, str]] = []
    characters = 0
    for document in divided:
        length = len(document[1])
        if batch and (length > LONG or len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS):
            yield batch
            batch, characters = [], 0
        batch.append(document)
        characters += BATCH_CHARACTERS if length > LONG else length
    if batch:
        yield batch
