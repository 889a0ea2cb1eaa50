"""Token windows of a text source, always the same for the same text, tokenizer and request. Does not import torch.

Shapes: W windows, T tokens per window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from harvest.errors import InputError
from harvest.request import HarvestRequest
from harvest.text.documents import Reading, documents
from harvest.text.near_copies import NearCopies, number_of, signature
from harvest.text.tokenized import LONG, tokenized

BATCH_DOCUMENTS, BATCH_CHARACTERS = 256, 1 << 20  # tokenized at once, to bound memory


@dataclass(frozen=True)
class Windows:
    """Token windows, and the number of the document of each window in the text source."""

    tokens_WxT: np.ndarray  # int32
    documents_W: np.ndarray  # int32


def token_windows(
    dataset_location: str, tokenizer, request: HarvestRequest, reading: Reading | None = None
) -> dict[str, Windows]:
    """Windows of exactly `seq_len` tokens, {"train": ..., "held_out": ...}, read from the start of the text.

    Windows of a document are consecutive. The rest of a document is dropped, and no special token is added. Whole
    documents are held out, chosen by a hash of their words. Near-copies of a document go to the same split. Only if one
    split would be empty, because all documents are made from one template, near-copies are split, too. There are fewer
    windows than requested if the text is too short. If all windows are held out, there is no "train". Raises InputError
    if a split has no window.
    """
    reading = Reading() if reading is None else reading
    splits = _filled(dataset_location, tokenizer, request, reading)
    if reading.near_copies and not all(filling.tokens for filling in splits.values()):
        reading.copies_together = False
        splits = _filled(dataset_location, tokenizer, request, reading)
    if not reading.documents:
        raise InputError(f"--dataset {dataset_location}: there is no document in it: use another text")
    for name, filling in splits.items():
        if not filling.tokens:
            held_out_share = "smaller" if name == "train" else "larger"
            raise InputError(
                f"--dataset {dataset_location}: there is no {name} window of {request.seq_len} tokens: of its "
                f"{reading.documents:,} documents {filling.documents:,} belong to {name}, and the longest has "
                f"{filling.longest:,} tokens. "
                f"Use more or longer documents, a shorter --seq-len or a {held_out_share} --held-out"
            )
    return {name: filling.windows() for name, filling in splits.items()}


def _filled(location: str, tokenizer, request: HarvestRequest, reading: Reading) -> dict[str, _Filling]:
    windows = {"train": request.training_windows, "held_out": request.n_samples - request.training_windows}
    splits = {split: _Filling(count) for split, count in windows.items() if count}
    for batch in _batches(_divided(location, request.held_out, reading)):
        chosen = [(number, text, splits[split]) for number, text, split in batch if splits[split].missing]
        if not chosen:
            continue
        enough = request.seq_len * max(filling.missing for _, _, filling in chosen)
        ids = tokenized(tokenizer, [text for _, text, _ in chosen], enough)
        for (number, _, filling), document_ids in zip(chosen, ids, strict=True):
            filling.add(number, document_ids, request.seq_len)
        if not any(filling.missing for filling in splits.values()):
            break
    return splits


class _Filling:
    """Collects the windows of one split."""

    def __init__(self, quota: int):
        self.missing = quota  # windows
        self.tokens: list[np.ndarray] = []
        self.origins: list[np.ndarray] = []
        self.documents, self.longest = 0, 0

    def add(self, document: int, ids: Sequence[int] | np.ndarray, seq_len: int) -> None:
        self.documents, self.longest = self.documents + 1, max(self.longest, len(ids))
        count = min(len(ids) // seq_len, self.missing)
        if count:
            self.tokens.append(np.array(ids[: count * seq_len], np.int32).reshape(count, seq_len))
            self.origins.append(np.full(count, document, np.int32))
            self.missing -= count

    def windows(self) -> Windows:
        return Windows(np.concatenate(self.tokens), np.concatenate(self.origins))


def _divided(location: str, held_out: float, reading: Reading) -> Iterator[tuple[int, str, str]]:
    """(number, text, split) of each document."""
    near_copies, splits = NearCopies(), list[str]()
    reading.documents = reading.near_copies = 0
    for number, text in enumerate(documents(location, reading)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"--dataset {location}: document {number} is not valid Unicode ({error}): correct it"
            ) from error
        lowest_H = signature(text)
        original = near_copies.original(text, lowest_H)
        split = "held_out" if number_of(lowest_H.tobytes()) / 2**64 < held_out else "train"
        splits.append(splits[original] if reading.copies_together and original < number else split)
        reading.documents += 1
        reading.near_copies += original < number and bool(text.strip())
        yield number, text, splits[-1]


def _batches(divided: Iterable[tuple[int, str, str]]) -> Iterator[list[tuple[int, str, str]]]:
    """Batches of documents to tokenize. A long document is a batch by itself."""
    batch: list[tuple[int, str, str]] = []
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
