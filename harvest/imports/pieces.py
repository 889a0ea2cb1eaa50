"""The pieces of an import from files: which of their arrays are rows, tokens and documents, read together.

Shapes: N entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harvest.errors import InputError
from harvest.imports.array_files import Column, columns_of, joined
from harvest.imports.importing import Piece

PIECE_BYTES = 64 << 20
TOKENS, DOCUMENTS = ("token_ids", "input_ids", "tokens"), ("documents", "document")  # names of columns


@dataclass(frozen=True)
class Arrays:
    """Rows in files, and the tokens and documents of them, if there are any."""

    rows: Column
    tokens: Column | None
    documents: Column | None

    def __len__(self) -> int:
        return self.rows.shape[0]

    def pieces(self) -> Iterator[Piece]:
        size = max(1, PIECE_BYTES // max(1, 4 * int(np.prod(self.rows.shape[1:]))))
        for start in range(0, len(self), size):
            part = start, min(start + size, len(self))
            tokens, documents = (of.read(*part) if of else None for of in (self.tokens, self.documents))
            yield Piece(self.rows.read(*part), tokens, documents)


def arrays_in(
    files: Sequence[Path], column: str | None, token_files: Sequence[Path], document_files: Sequence[Path]
) -> Arrays:
    """The arrays of these files. Tokens and documents may also be columns of the files of the rows.

    Raises InputError if it is not clear which array holds the rows, or if the arrays have different lengths.
    """
    of_files = [columns_of(path) for path in files]
    name = _named(of_files[0], column, files[0])
    for path, columns in zip(files, of_files, strict=True):
        if name not in columns:
            raise InputError(f"{path} has no array {name!r} like {files[0]}: import it separately")
    rows = joined([columns[name] for columns in of_files])
    others: list[Column | None] = []
    for given, names in ((token_files, TOKENS), (document_files, DOCUMENTS)):
        beside = next((name for name in names if all(name in columns for columns in of_files)), None)
        if given:
            others.append(joined([_only(path) for path in given]))
        else:
            others.append(joined([columns[beside] for columns in of_files]) if beside else None)
    tokens, documents = others
    if tokens and len(rows.shape) == 2 and len(tokens.shape) == 2 and rows.shape[0] == np.prod(tokens.shape):
        rows = _in_windows(rows, tokens.shape[1])
    for what, other in (("tokens", tokens), ("documents", documents)):
        if other and other.shape[0] != rows.shape[0]:
            raise InputError(
                f"{other.label} has {other.shape[0]:,} {what}, but there are {rows.shape[0]:,} entries of rows: each "
                "entry needs one"
            )
    return Arrays(rows, tokens, documents)


def _named(columns: dict[str, Column], asked: str | None, path: Path) -> str:
    """The name of the array that holds the rows: the one asked for, or the only one that can."""
    if asked is not None and asked in columns:
        return asked
    able = [name for name, column in columns.items() if column.kind == "f" and len(column.shape) in (2, 3)]
    there = ", ".join(f"{name or 'without a name'} {list(column.shape)}" for name, column in columns.items())
    if asked is not None or len(able) > 1:
        problem = f"there is no array {asked}" if asked is not None else f"{len(able)} arrays could be the rows"
        raise InputError(f"{path}: {problem}: choose one with --column ({there})")
    if not able:
        raise InputError(
            f"{path}: no array in it holds rows ({there or 'it has no numbers'}): give floating-point numbers, "
            "rows × width or windows × positions × width"
        )
    return able[0]


def _only(path: Path) -> Column:
    whole = [column for column in columns_of(path).values() if column.kind == "i"]
    if len(whole) != 1:
        raise InputError(f"{path}: holds {len(whole)} arrays of whole numbers: give a file with one")
    return whole[0]


def _in_windows(rows: Column, length: int) -> Column:
    """Rows [N, D] as windows of `length` rows."""

    def read(start: int, stop: int) -> np.ndarray:
        return rows.read(start * length, stop * length).reshape(stop - start, length, -1)

    return Column(rows.path, rows.name, (rows.shape[0] // length, length, rows.shape[1]), rows.kind, read)
