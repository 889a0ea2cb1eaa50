"""Token windows of a text source, always the same for the same text, tokenizer and request. Does not import torch.

Shapes: W windows, T tokens per window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from harvest.errors import InputError
from harvest.request import HarvestRequest
from harvest.text.chat import Chat, chat_tokens
from harvest.text.columns import Document
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

    def kept(self, positions: int) -> np.ndarray:
        """A mask of the last positions of each window whose tokens become rows, bool [W, P]."""
        return self.others.get("kept", np.ones_like(self.tokens_WxT, bool))[:, -positions:]

    def part(self, windows: slice | np.ndarray) -> Windows:
        others = {name: array_WxT[windows] for name, array_WxT in self.others.items()}
        return Windows(self.tokens_WxT[windows], self.documents_W[windows], others)


def token_windows(
    dataset_location: str,
    tokenizer,
    request: HarvestRequest,
    reading: Reading | None = None,
    bos: tuple[int, ...] = (),
) -> dict[str, Windows]:
    """Windows of exactly `seq_len` tokens, {"train": ..., "held_out": ...}, read from the start of the text.

    Windows of a document are consecutive. The rest of a document is dropped, and no special token is added. A special
    token in the text ends a window and is in none, unless the request keeps special tokens. If the request packs, the
    documents of a split are joined, and windows go on over the separators, which have no row. `bos` is what the model
    will put in front of each window; it is therefore taken from the start of a chat.

    Whole documents are held out, chosen by a hash of their words. Near-copies of a document go to the same split. Only
    if one split would be empty, because all documents are made from one template, near-copies are split, too. There are
    fewer windows than requested if the text is too short. If all windows are held out, there is no "train". Raises
    InputError if a split has no window, or no token of it becomes a row.
    """
    reading = Reading() if reading is None else reading
    splits = _filled(dataset_location, tokenizer, request, reading, bos)
    if reading.near_copies and any(filling.is_empty for filling in splits.values()):
        reading.copies_together = False
        splits = _filled(dataset_location, tokenizer, request, reading, bos)
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
    windows = {name: filling.windows() for name, filling in splits.items()}
    for name, split in windows.items():
        if not split.others.get("kept", split.tokens_WxT + 1).any():
            fix = f"--chat-roles may be {', '.join(reading.roles)}" if reading.roles else "use another text"
            raise InputError(f"--dataset {dataset_location}: no token of its {name} windows becomes a row: {fix}")
    reading.tokens = sum(split.tokens_WxT.size for split in windows.values())
    reading.lost_tokens = sum(filling.lost for filling in splits.values())
    return windows


def _filled(
    location: str, tokenizer, request: HarvestRequest, reading: Reading, bos: tuple[int, ...]
) -> dict[str, _Filling]:
    windows = {"train": request.training_windows, "held_out": request.n_samples - request.training_windows}
    ends, separator = special(tokenizer, request), None
    if request.pack:
        token = separator_of(tokenizer, location)
        separator = np.array([[token], [token not in ends]])
    splits = {split: _Filling(count, request.seq_len, separator) for split, count in windows.items() if count}
    for batch in _batches(_divided(location, request, reading)):
        chosen = [(number, document, splits[split]) for number, document, split in batch if splits[split].missing]
        if not chosen:
            continue
        enough = request.seq_len * max(filling.missing for _, _, filling in chosen)
        texts = [document for _, document, _ in chosen if isinstance(document, str)]
        ids = iter(tokenized(tokenizer, texts, enough) if texts else ())
        for number, document, filling in chosen:
            if isinstance(document, Chat):
                reading.roles += [role for role in document.roles if role not in reading.roles]
                chat_2xT = chat_tokens(tokenizer, document, request.chat_roles, ends)
                begins = bos and chat_2xT[0, : len(bos)].tolist() == list(bos)
                filling.add(number, [chat_2xT[:, len(bos) :] if begins else chat_2xT])
                continue
            ids_T = np.asarray(next(ids) if isinstance(document, str) else document, np.int32)
            parts = [ids_T] if request.pack else parts_between(ids_T, ends)
            filling.add(number, [np.stack([part_T, ~np.isin(part_T, ends)]) for part_T in parts])
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

    def __init__(self, quota: int, seq_len: int, separator: np.ndarray | None):
        self.missing, self.seq_len, self.separator = quota, seq_len, separator
        self.tokens: list[np.ndarray] = []
        self.kept: list[np.ndarray] = []
        self.origins: list[np.ndarray] = []
        self.rest_3xT = np.empty((3, 0), np.int32)  # tokens, whether they become rows, and their documents
        self.documents, self.longest, self.lost = 0, 0, 0

    @property
    def is_empty(self) -> bool:
        return not any(map(len, self.tokens))

    def add(self, document: int, parts: Sequence[np.ndarray]) -> None:
        """Add parts of a document, each of them tokens and whether they become rows, [2, T]."""
        self.documents += 1
        for part_2xT in parts:
            if not self.missing:
                break
            self.longest = max(self.longest, part_2xT.shape[1])
            if self.separator is not None:
                part_2xT = np.append(part_2xT, self.separator, 1)
            numbered_3xT = np.append(part_2xT, np.full((1, part_2xT.shape[1]), document), 0)
            all_3xT = np.append(self.rest_3xT, numbered_3xT.astype(np.int32), 1)
            count = min(all_3xT.shape[1] // self.seq_len, self.missing)
            self.missing -= count
            whole_3xWxT = all_3xT[:, : count * self.seq_len].reshape(3, count, self.seq_len)
            for found, values_WxT in zip((self.tokens, self.kept, self.origins), whole_3xWxT, strict=True):
                found.append(values_WxT)
            rest_3xT = all_3xT[:, count * self.seq_len :]
            if self.separator is not None:
                self.rest_3xT = rest_3xT
            elif self.missing:
                self.lost += rest_3xT.shape[1]

    def windows(self) -> Windows:
        """The windows, with the tokens that become rows unless all do, and the document of each token if joined."""
        tokens_WxT, kept_WxT, origins_WxT = map(np.concatenate, (self.tokens, self.kept, self.origins))
        others = {"kept": kept_WxT.astype(bool)} if not kept_WxT.all() else {}
        others |= {"token_documents": origins_WxT} if self.separator is not None else {}
        return Windows(tokens_WxT, origins_WxT[:, 0], others)


def comparable(document: Document) -> str:
    """The text by which near-copies of a document are found. Token ids are compared like words."""
    if isinstance(document, Chat):
        return document.text
    return document if isinstance(document, str) else " ".join(map(str, document))


def _divided(location: str, request: HarvestRequest, reading: Reading) -> Iterator[tuple[int, Document, str]]:
    """(number, document, split) of each document."""
    near_copies, splits = NearCopies(), list[str]()
    reading.documents = reading.near_copies = 0
    for number, document in enumerate(documents(location, reading, request.text_column)):
        text = comparable(document)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"--dataset {location}: document {number} is not valid Unicode ({error}): correct it"
            ) from error
        lowest_H = signature(text)
        original = near_copies.original(text, lowest_H)
        split = "held_out" if number_of(lowest_H.tobytes()) / 2**64 < request.held_out_share else "train"
        splits.append(splits[original] if reading.copies_together and original < number else split)
        reading.documents += 1
        reading.near_copies += original < number and bool(text.strip())
        yield number, document, splits[-1]


def _batches(
    divided: Iterable[tuple[int, Document, str]],
) -> Iterator[list[tuple[int, Document, str]]]:
    """Batches of documents to tokenize. A long document is a batch by itself."""
    batch: list[tuple[int, Document, str]] = []
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
