"""Text into token windows: the same windows for the same text, tokenizer and request. No torch.

A text source is one of
- a hub data set, `name` or `name:config`: its train split, streamed; column `text`, or its only column of strings
- .jsonl, .jsonl.gz: one document a line, under the key `text`
- .parquet: one document a row; the column as for a hub data set
- .txt: documents are separated by <|endoftext|>; where there is none, a lone file is divided at its blank lines,
  and in a folder each file is one document
- a folder of such files, read in the order of their names

Shapes: W windows, T tokens a window.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from harvest.errors import InputError
from harvest.request import HarvestRequest

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
SEPARATOR = "<|endoftext|>"
BATCH_DOCUMENTS, BATCH_CHARACTERS = 256, 1 << 20  # tokenized at a time: bounds memory


@dataclass(frozen=True)
class Windows:
    """Token windows and, of each, the number of its document in the text source."""

    tokens_WxT: np.ndarray  # int32
    documents_W: np.ndarray  # int32


def token_windows(dataset_location: str, tokenizer, request: HarvestRequest) -> dict[str, Windows]:
    """Windows of exactly `seq_len` tokens, {"train": ..., "held_out": ...}, read from the start of the text.

    Windows follow each other within a document; the rest of a document is dropped, and no special token is added.
    Whole documents are held out, chosen by a hash of their text, so that equal documents are never on both sides.
    There are fewer windows than asked for where the text ends; a split without any raises InputError. With all held
    out there is no "train".
    """
    held_out = min(max(1, round(request.n_samples * request.held_out)), request.n_samples - 1)
    splits = {"train": _Filling(request.n_samples - held_out), "held_out": _Filling(held_out)}
    if request.held_out == 1:
        splits = {"held_out": _Filling(request.n_samples)}
    count = 0
    for batch in _batches(enumerate(documents(dataset_location))):
        count = batch[-1][0] + 1
        chosen = [(number, text, splits[_split_of(number, text, dataset_location, request)]) for number, text in batch]
        chosen = [document for document in chosen if document[2].missing]
        if not chosen:
            continue
        texts = [text for _, text, _ in chosen]
        ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        for (number, _, filling), document_ids in zip(chosen, ids, strict=True):
            filling.add(number, document_ids, request.seq_len)
        if not any(filling.missing for filling in splits.values()):
            break
    if not count:
        raise InputError(f"--dataset {dataset_location}: there is no document in it")
    for name, filling in splits.items():
        if not filling.tokens:
            held_out_share = "smaller" if name == "train" else "larger"
            raise InputError(
                f"--dataset {dataset_location}: no {name} window of {request.seq_len} tokens: of its {count:,} "
                f"documents {filling.documents:,} belong to {name}, the longest with {filling.longest:,} tokens. "
                f"Give more or longer documents, a shorter --seq-len or a {held_out_share} --held-out"
            )
    return {name: filling.windows() for name, filling in splits.items()}


class _Filling:
    """One split while it is filled."""

    def __init__(self, quota: int):
        self.missing = quota  # windows
        self.tokens: list[np.ndarray] = []
        self.origins: list[np.ndarray] = []
        self.documents, self.longest = 0, 0

    def add(self, document: int, ids: list[int], seq_len: int) -> None:
        self.documents, self.longest = self.documents + 1, max(self.longest, len(ids))
        count = min(len(ids) // seq_len, self.missing)
        if count:
            self.tokens.append(np.array(ids[: count * seq_len], np.int32).reshape(count, seq_len))
            self.origins.append(np.full(count, document, np.int32))
            self.missing -= count

    def windows(self) -> Windows:
        return Windows(np.concatenate(self.tokens), np.concatenate(self.origins))


def _split_of(number: int, text: str, location: str, request: HarvestRequest) -> str:
    try:
        digest = blake2b(text.encode(), digest_size=8).digest()
    except UnicodeEncodeError as error:
        raise InputError(f"--dataset {location}: document {number} is not Unicode text: {error}") from error
    return "held_out" if int.from_bytes(digest, "big") / 2**64 < request.held_out else "train"


def _batches(numbered: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    batch, characters = [], 0
    for number, text in numbered:
        batch.append((number, text))
        characters += len(text)
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def documents(location: str) -> Iterator[str]:
    """The documents of a text source, in its order, one at a time. Raises InputError for what cannot be read."""
    path = Path(location)
    if not path.exists() or path.match("datasets--*/snapshots/*"):  # a data set in the hub client's cache
        yield from _hub_documents(location)
        return
    files = text_files(path)
    for file in files:
        if file.suffix == ".parquet":
            yield from _parquet_documents(file)
        elif file.suffix == ".txt":
            yield from _txt_documents(file, alone=len(files) == 1)
        else:
            yield from _jsonl_documents(file)


def text_files(path: Path) -> list[Path]:
    """The text files that a local path means; raises InputError where there is none, or an empty one."""
    known = ", ".join(SUFFIXES)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
        if not files:
            raise InputError(f"--dataset {path}: there is no text file in this directory ({known})")
    elif path.name.endswith(SUFFIXES):
        files = [path]
    else:
        raise InputError(f"--dataset {path}: not a kind of text file that can be read ({known})")
    for file in files:
        if not file.stat().st_size:
            raise InputError(f"--dataset {file}: the file is empty")
    return files


def _txt_documents(path: Path, alone: bool) -> Iterator[str]:
    separated = any(SEPARATOR in line for _, line in _lines(path))
    document: list[str] = []
    for _, line in _lines(path):
        *endings, rest = line.split(SEPARATOR)
        if separated:
            for ending in endings:
                yield from _joined([*document, ending])
                document = []
        elif alone and not line.strip():
            yield from _joined(document)
            document = []
        document.append(rest)
    yield from _joined(document)


def _joined(lines: list[str]) -> Iterator[str]:
    text = "".join(lines).strip()
    if text:
        yield text


def _jsonl_documents(path: Path) -> Iterator[str]:
    yield from (record["text"] for _, record in jsonl_records(path))


def jsonl_records(path: Path) -> Iterator[tuple[int, dict]]:
    """The objects of a .jsonl file, plain or gzipped, with their line; each has a text under the key `text`."""
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"--dataset {path}, line {number}: not JSON ({error})") from error
        text = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            keys = f"its keys are {', '.join(record)}" if isinstance(record, dict) else "it is no object"
            raise InputError(f'--dataset {path}, line {number}: there is no text under the key "text" ({keys})')
        yield number, record


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file, plain or gzipped, counted from 1."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(f"--dataset {path}, line {number}: not UTF-8 (byte {byte:#04x}); save it as UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"--dataset {path}: cannot be read after line {number}: {error}") from error


def _parquet_documents(path: Path) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    is_text = {"string", "large_string", "string_view"}
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            strings = [field.name for field in schema if str(field.type) in is_text]
            column = _text_column(str(path), strings, schema.names)
            for batch in file.iter_batches(BATCH_DOCUMENTS, columns=[column]):
                yield from (text or "" for text in batch.column(0).to_pylist())  # a missing text is an empty document
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"--dataset {path}: cannot be read as parquet: {error}") from error


def _hub_documents(location: str) -> Iterator[str]:
    import datasets

    place, _, config = location.partition(":")
    try:
        rows = datasets.load_dataset(place, config or None, split="train", streaming=True)
        column = None
        for row in rows:
            if column is None:
                strings = [name for name, value in row.items() if isinstance(value, str)]
                column = _text_column(location, strings, list(row))
            yield row[column] or ""  # a missing text is an empty document
    except InputError:
        raise
    except Exception as error:  # of many libraries: the hub's client, the file system over it, the formats' readers
        what = " ".join(f"{type(error).__name__}: {error}".split())
        advice = f" (name one as {place}:CONFIG)" if "onfig name is missing" in what else ""
        raise InputError(f"--dataset {location}: cannot be read from the hub: {what}{advice}") from error


def _text_column(location: str, strings: list[str], columns: list[str]) -> str:
    if "text" in strings:
        return "text"
    if len(strings) == 1:
        return strings[0]
    raise InputError(
        f"--dataset {location}: which column is the text? There is no column of strings named text, "
        f"nor only one; the columns are {', '.join(columns)}"
    )
