"""The documents of a text source, in order, one at a time. Does not import torch.

A text source is one of
- a hub data set, `name` or `name:config`: its train split, streamed; the column is chosen by `column_to_read`
- .jsonl, .jsonl.gz: one document per line; keys are columns
- .parquet: one document per row
- .txt: documents are separated by <|endoftext|>; without it, a single file is split at blank lines, and in a folder
  each file is one document
- a folder of such files, including subfolders, read in the order of their names. Hidden and empty files are not read.
  If some files are of a train split, those of a test or validation split are not read either
A missing text (null) is an empty document. A column may hold token ids or chats instead of
texts.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from harvest.errors import InputError
from harvest.files import refuse_irregular
from harvest.text.columns import (
    KNOWN,
    TEXT,
    Document,
    column_to_read,
    document_in,
    fields_of,
    kinds_of_rows,
    kinds_of_schema,
    text_in,
    value_in,
)

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
SEPARATOR = "<|endoftext|>"
PARQUET_ROWS = 32  # read at once; a row is a document of any length
HEAD = 1000  # rows from which the schema of a stream is inferred
TRAIN = {"train", "training"}
OTHER_SPLITS = {"test", "testing", "eval", "evaluation", "validation", "valid", "val", "dev", "heldout", "holdout"}


@dataclass
class Reading:
    """Facts that are collected while a text source is read."""

    columns: list[str] = field(default_factory=list)  # columns of the text; none for .txt
    left_out: list[str] = field(default_factory=list)  # files not read: empty, or of other splits
    roles: list[str] = field(default_factory=list)  # of the messages of chats
    documents: int = 0
    near_copies: int = 0  # documents that are near-copies of an earlier one
    copies_together: bool = True  # whether near-copies are in one split
    tokens: int = 0  # in windows
    lost_tokens: int = 0  # read, but in no window, because a document or its rest is shorter than one


def documents(location: str, reading: Reading | None = None, column: str | None = None) -> Iterator[Document]:
    """The documents of a text source, in order, one at a time: texts, token ids, int32 [T], or chats.

    `column` is the column to read, if it is not to be chosen. Raises InputError if the source cannot be read.
    """
    path, reading = Path(location), Reading() if reading is None else reading
    if not path.exists() or path.match("datasets--*/snapshots/*"):  # a data set in the cache of the hub client
        yield from _hub_documents(location, reading, column)
        return
    files = text_files(path)
    reading.left_out = [str(file.relative_to(path)) for file in _all_text_files(path) if file not in files]
    for file in files:
        if file.suffix.lower() == ".parquet":
            yield from _parquet_documents(file, reading, column)
        elif column and file.suffix.lower() == ".txt":
            raise InputError(f"--text-column {column}: {file} has no columns: leave the flag out")
        elif file.suffix.lower() == ".txt":
            yield from _txt_documents(file, alone=len(files) == 1)
        else:
            key = column or _jsonl_column(file)
            _note(reading, key)
            yield from _jsonl_documents(file, key)


def _note(reading: Reading, column: str) -> None:
    if column not in reading.columns:
        reading.columns.append(column)


def text_files(path: Path) -> list[Path]:
    """The text files of a local path. Raises InputError if there is none, or all are empty."""
    known = ", ".join(SUFFIXES)
    files = _all_text_files(path)
    if path.is_dir():
        if not files:
            raise InputError(f"--dataset {path}: there is no text file in this directory: add one of type {known}")
        splits = [_split(file.relative_to(path)) for file in files]
        if "train" in splits:
            files = [file for file, split in zip(files, splits, strict=True) if split != "other"]
    elif not _is_text_file(path):
        raise InputError(f"--dataset {path}: this type of file cannot be read: give one of type {known}")
    for file in files:
        refuse_irregular(file)
    if filled := [file for file in files if file.stat().st_size]:
        return filled
    raise InputError(
        f"--dataset {path}: {'all its text files are' if path.is_dir() else 'the file is'} empty: use another text"
    )


def _all_text_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files, starts, seen = list[Path](), [path], set(path.resolve().parents)
    for start in starts:  # links to folders are appended here; each folder is read once
        for folder, subfolders, names in os.walk(start):
            if (resolved := Path(folder).resolve()) in seen:
                subfolders.clear()
                continue
            seen.add(resolved)
            subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name != "__MACOSX")
            starts += [link for name in subfolders if (link := Path(folder, name)).is_symlink()]
            files += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(file for file in files if _is_text_file(file) and file.is_file())


def _is_text_file(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def _split(file: Path) -> str | None:
    """The split in the name of a file or of its folders: "train", or "other" for test, validation and the like."""
    for part in reversed(file.parts):
        words = set(re.findall("[a-z]+", part.lower().replace("held_out", "heldout").replace("held-out", "heldout")))
        if words & (TRAIN | OTHER_SPLITS):
            return "train" if words & TRAIN else "other"
    return None


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


def _jsonl_column(path: Path) -> str:
    """The key of the text: `text`, or else one of KNOWN, or the only key of strings, if it is in all first lines."""
    head: list[dict] = []
    for _, record in islice(json_records(path), HEAD):
        if "text" in record:
            return "text"
        head.append(record)
    kinds = kinds_of_rows(head)
    keys = [name for name, kind in KNOWN.items() if kinds.get(name) == kind]
    keys = keys[:1] or [name for name, kind in kinds.items() if kind == TEXT and "." not in name]
    return keys[0] if len(keys) == 1 and all(keys[0] in record for record in head) else "text"


def jsonl_records(path: Path) -> Iterator[tuple[int, dict]]:
    """(line number, object) of each line of a .jsonl file, plain or gzipped, with a text under the key "text".

    A null is read as an empty text. Raises InputError for a line without a text.
    """
    for number, record in json_records(path):
        place = f"{path}, line {number}"
        yield number, {**record, "text": text_in(_value(record, "text", place, "add it"), "text", place)}


def _jsonl_documents(path: Path, column: str) -> Iterator[Document]:
    for number, record in json_records(path):
        place = f"{path}, line {number}"
        fix = "add it, or choose another key with --text-column"
        yield document_in(_value(record, column, place, fix), column, place)


def _value(record: dict, column: str, place: str, fix: str) -> object:
    """The value under a key, which may be that of an inner object, such as meta.text."""
    values = record if column in record else dict(fields_of(record))
    if column not in values:
        keys = ", ".join(values)
        raise InputError(f'--dataset {place}: there is no text under the key "{column}" (its keys are {keys}): {fix}')
    return values[column]


def json_records(path: Path) -> Iterator[tuple[int, dict]]:
    """(line number, object) of each line of a .jsonl file, plain or gzipped. Raises InputError for another line."""
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"--dataset {path}, line {number}: not JSON ({error}): correct this line") from error
        if not isinstance(record, dict):
            raise InputError(f'--dataset {path}, line {number}: not a JSON object: write one with the key "text"')
        yield number, record


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line) of a text file, plain or gzipped."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(f"--dataset {path}, line {number}: not UTF-8 (byte {byte:#04x}): save it as UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"--dataset {path}: cannot be read after line {number} ({error}): use an undamaged copy"
        ) from error


def _parquet_documents(path: Path, reading: Reading, asked: str | None) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            column = column_to_read(str(path), kinds_of_schema(str(path), file.schema_arrow), asked)
            _note(reading, column)
            batches = file.iter_batches(PARQUET_ROWS, columns=[column])
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield document_in(value_in(row, column), column, f"{path}, row {number}")
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"--dataset {path}: cannot be read as parquet ({error}): use an undamaged copy") from error


def _hub_documents(location: str, reading: Reading, asked: str | None) -> Iterator[Document]:
    import datasets

    repo, _, config = location.partition(":")
    try:
        data = datasets.load_dataset(repo, config or None, split="train", streaming=True)
        rows, head = iter(data), []
        if data.features:
            kinds = kinds_of_schema(location, data.features.arrow_schema)
        else:
            head = list(islice(rows, HEAD))
            kinds = kinds_of_rows(head)
        if kinds:
            column = column_to_read(location, kinds, asked)
            _note(reading, column)
        for number, row in enumerate(chain(head, rows), 1):
            yield document_in(value_in(row, column), column, f"{location}, row {number}")
    except InputError:
        raise
    except Exception as error:  # from many libraries: the hub client, its file system, the readers of formats
        what = " ".join(f"{type(error).__name__}: {error}".split())
        advice = (
            f"give one as {repo}:CONFIG" if "onfig name is missing" in what else "try again, or use another data set"
        )
        raise InputError(f"--dataset {location}: cannot be read from the hub ({what}): {advice}") from error
