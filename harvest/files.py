"""Atomic writing of files, and checksums that detect damage. Imports neither torch nor jax.

JSON records have a checksum of their content under the key `crc32`, and so does each line of a .jsonl file. Arrays are
in .npz files, whose format has a checksum of each array; the comment of the archive is a checksum of all of them. A
damaged file raises InputError, which names the file.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from harvest.errors import InputError

CHECKSUM = "crc32"
ARRAYS = "arrays_crc32"  # key in a record: the checksum from `write_arrays` of the arrays that belong to it
FILE_NAME = r"^[A-Za-z0-9_+][A-Za-z0-9_+.-]{0,199}$"  # a name that is no path, on any system
TEMPORARY = ".tmp"  # suffix of temporary files


def write_atomically(path: Path, write: Callable[..., object]) -> None:
    """Write a file with `write(file)` to a temporary file in the same folder, then rename it to `path`.

    The folder is created if needed. The file is therefore complete or absent. The temporary file has a random name, so
    that writers do not interfere, and is never a link. Raises InputError if `path` is a folder, a pipe or a device, and
    OSError with the name of the file.
    """
    refuse_as_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}{TEMPORARY}")
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        with os.fdopen(descriptor, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # the error of a write has no name, or the temporary one
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary(directory: Path) -> None:
    """Delete temporary files that killed processes left in a folder. The caller must hold the lock of the folder."""
    for path in directory.glob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record and its checksum, atomically. Non-finite values raise ValueError."""
    text = json.dumps(sealed(record), indent=1)
    write_atomically(path, lambda file: file.write(f"{text}\n".encode()))


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """Read a record that `write_json` wrote, without its checksum. Raises InputError if the file is damaged.

    `advice` is the fix for a damaged file and ends the error message, as in "--force trains it again".
    """
    return unsealed(parse_json(path, advice), str(path), advice)


def parse_json(path: Path, advice: str) -> dict[str, Any]:
    """Read a JSON object without a checksum. Raises InputError, which ends in `advice`."""
    refuse_irregular(path)
    return parsed(path.read_bytes(), str(path), advice)


def parsed(text: bytes, what: str, advice: str) -> dict[str, Any]:
    """Parse a JSON object. Raises InputError, which begins with `what` and ends in `advice`."""
    try:
        record = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is damaged ({error}): {advice}") from error
    if not isinstance(record, dict):
        raise InputError(f"{what} is damaged (it holds no JSON object): {advice}")
    return record


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with JSON types (numpy numbers converted) and its checksum. Non-finite values raise ValueError."""
    plain = json.loads(json.dumps(record, allow_nan=False, default=lambda number: number.item()))
    plain.pop(CHECKSUM, None)
    return {**plain, CHECKSUM: record_checksum(plain)}


def unsealed(record: Mapping[str, Any], what: str, advice: str) -> dict[str, Any]:
    """A record of `sealed` without its checksum. Raises InputError if the checksum is wrong or missing."""
    plain = {name: value for name, value in record.items() if name != CHECKSUM}
    if CHECKSUM not in record:
        raise InputError(f"{what} has no checksum, so it may be damaged: {advice}")
    if record[CHECKSUM] != record_checksum(plain):
        raise InputError(f"{what} is damaged or was edited (its checksum differs): {advice}")
    return plain


def record_checksum(record: Mapping[str, Any]) -> int:
    """The crc32 of the content of a JSON object, independent of its layout and the order of its keys."""
    return zlib.crc32(json.dumps(record, sort_keys=True, separators=(",", ":")).encode())


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Append a line with a checksum for each record to a .jsonl file."""
    with open(path, "ab") as file:
        file.writelines(f"{json.dumps(sealed(record))}\n".encode() for record in records)


def read_lines(path: Path, advice: str) -> list[dict[str, Any]]:
    """Read the records that `append_lines` wrote, without an incomplete last line, which a killed process may leave.

    Raises InputError, which names the first damaged line and ends in `advice`.
    """
    refuse_irregular(path)
    *whole, cut = path.read_bytes().split(b"\n")
    if cut.endswith(b"}") or cut[:-1].endswith(b"}"):  # the last line is complete except for its damaged end
        whole.append(cut)
    names = [f"{path}, line {number}," for number in range(1, len(whole) + 1)]
    return [unsealed(parsed(line, name, advice), name, advice) for name, line in zip(names, whole, strict=True)]


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], compressed: bool = False) -> int:
    """Write an .npz file, atomically. Returns the checksum of all arrays, to be kept in a record that belongs to it."""
    save: Callable[..., None] = np.savez_compressed if compressed else np.savez
    crc32 = 0

    def write(file: IO[bytes]) -> None:
        nonlocal crc32
        save(file, **arrays)
        with zipfile.ZipFile(file, "a") as archive:
            crc32 = archive_checksum(archive)
            archive.comment = str(crc32).encode()

    write_atomically(path, write)
    return crc32


def read_arrays(path: Path, advice: str, expected: int | None = None) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz file that `write_arrays` wrote, and compare them with their checksums.

    `expected` is the checksum that `write_arrays` returned, if a record has it. Raises InputError, which ends in
    `advice`.
    """
    compare_arrays(path, advice, expected)
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def compare_arrays(path: Path, advice: str, expected: int | None = None) -> None:
    """Raise InputError, as `read_arrays` does, if an .npz file is damaged."""
    refuse_irregular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            comment, crc32 = archive.comment, archive_checksum(archive)
            damaged = archive.testzip() if comment == str(crc32).encode() else None
    except Exception as error:  # zipfile raises many kinds of exceptions for damaged files
        if isinstance(error, MemoryError) or isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}): {advice}") from error
    if not comment:
        raise InputError(f"{path} has no checksum, so it may be damaged: {advice}")
    if damaged or comment != str(crc32).encode():
        raise InputError(f"{path} is damaged or was edited (its checksum differs): {advice}")
    if expected not in (None, crc32):
        raise InputError(f"{path} does not belong to the record beside it (its checksum differs): {advice}")


def archive_checksum(archive: zipfile.ZipFile) -> int:
    """The crc32 of the names, positions and checksums of the files in a zip archive."""
    return zlib.crc32(repr([(file.filename, file.header_offset, file.CRC) for file in archive.infolist()]).encode())


def array_checksum(array: np.ndarray, crc32: int = 0) -> int:
    """The crc32 of the number format, shape and values of an array, continued from `crc32`."""
    crc32 = zlib.crc32(f"{array.dtype} {array.shape}".encode(), crc32)
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, crc32)


def refuse_irregular(path: Path) -> None:
    """Raise InputError for a folder, a pipe or a device: reading it fails or never ends."""
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise InputError(f"{path} is not a regular file: give a regular file")


def refuse_as_target(path: Path) -> None:
    """Raise InputError for a folder, a pipe or a device, to which no file can be renamed."""
    refuse_irregular(path)
    if path.absolute().parent == Path("/dev"):  # /dev/stdout is a link, which the file would replace
        raise InputError(f"{path} cannot be replaced by a file: give a file in another folder")


def refuse_taken(directory: Path) -> None:
    """Raise InputError if --to exists and is not an empty directory."""
    if os.path.lexists(directory) and not (directory.is_dir() and not any(directory.iterdir())):
        raise InputError(f"--to {directory} already exists: choose a new or an empty directory")


@contextmanager
def whole_directory(to: Path) -> Iterator[Path]:
    """A context with a temporary directory, which is renamed to `to` at its end, or deleted after an error.

    Raises InputError if `to` exists and is not an empty directory.
    """
    refuse_taken(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{to.name}-", dir=to.parent) as beside:
        directory = Path(beside) / to.name
        directory.mkdir()
        yield directory
        os.replace(directory, to)


def checksum(path: Path) -> int:
    """The crc32 of a file's bytes."""
    crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            crc = zlib.crc32(chunk, crc)
    return crc
