"""Files that are whole or not there, and that tell when they are damaged. No torch, no jax.

JSON records carry a checksum of their content under the key `crc32`, and so does each line of a .jsonl file. Arrays lie
in .npz files, whose format has a checksum of each array; the archive's comment is one of all of them. A file that
cannot be read as it was written raises InputError, which names the file.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from harvest.errors import InputError

CHECKSUM = "crc32"
ARRAYS = "arrays_crc32"  # in a record, what `write_arrays` returned of the arrays that belong with it
TEMPORARY = ".tmp"  # the end of a temporary file's name


def write_atomically(path: Path, write: Callable[..., object]) -> None:
    """Let `write(file)` fill a temporary file in the same folder, then rename it: `path` is whole or not there.

    The temporary file has a name of its own, so that several writers do not mix, and it is never a link to follow.
    Raises InputError where `path` is a folder, a pipe or a device, OSError with the name of the file.
    """
    refuse_as_target(path)
    temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}{TEMPORARY}")
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        with os.fdopen(descriptor, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # a write does not say it, and the temporary name says nothing
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary(directory: Path) -> None:
    """Delete the temporary files that a kill left in a folder; only for the process that holds the folder's lock."""
    for path in directory.glob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record and its checksum, atomically. Values that are not finite raise ValueError."""
    text = json.dumps(sealed(record), indent=1)
    write_atomically(path, lambda file: file.write(f"{text}\n".encode()))


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """A record that `write_json` wrote, without its checksum.

    `advice` says what to do about a damaged file, and ends the message of the InputError: "--force trains it again".
    """
    return unsealed(parse_json(path, advice), str(path), advice)


def parse_json(path: Path, advice: str) -> dict[str, Any]:
    """The JSON object in a file that anybody may have written. Raises InputError, which ends in `advice`."""
    refuse_irregular(path)
    return parsed(path.read_bytes(), str(path), advice)


def parsed(text: bytes, what: str, advice: str) -> dict[str, Any]:
    """The JSON object in a text. Raises InputError, which begins with `what` and ends in `advice`."""
    try:
        record = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is damaged ({error}): {advice}") from error
    if not isinstance(record, dict):
        raise InputError(f"{what} is damaged (it holds no JSON object): {advice}")
    return record


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as JSON has it, numpy's numbers too, with its checksum. Values that are not finite raise ValueError."""
    plain = json.loads(json.dumps(record, allow_nan=False, default=lambda number: number.item()))
    plain.pop(CHECKSUM, None)
    return {**plain, CHECKSUM: record_checksum(plain)}


def unsealed(record: Mapping[str, Any], what: str, advice: str) -> dict[str, Any]:
    """A record of `sealed` without its checksum. Raises InputError, as `parsed` does, where it has another or none."""
    plain = {name: value for name, value in record.items() if name != CHECKSUM}
    if CHECKSUM not in record:
        raise InputError(f"{what} has no checksum: an earlier version wrote it, or it is damaged: {advice}")
    if record[CHECKSUM] != record_checksum(plain):
        raise InputError(f"{what} is damaged or was changed by hand (its checksum differs): {advice}")
    return plain


def record_checksum(record: Mapping[str, Any]) -> int:
    """The crc32 of a JSON object's content: neither its layout nor the order of its keys changes it."""
    return zlib.crc32(json.dumps(record, sort_keys=True, separators=(",", ":")).encode())


def append_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Add a line with its own checksum for each record to a .jsonl file."""
    with open(path, "ab") as file:
        file.writelines(f"{json.dumps(sealed(record))}\n".encode() for record in records)


def read_lines(path: Path, advice: str) -> list[dict[str, Any]]:
    """The records that `append_lines` wrote; a last line that a kill cut off is left out.

    Raises InputError, which names the first line that is damaged and ends in `advice`.
    """
    refuse_irregular(path)
    *whole, cut = path.read_bytes().split(b"\n")
    if cut.endswith(b"}") or cut[:-1].endswith(b"}"):  # all of a line but its end, which is damaged
        whole.append(cut)
    places = [f"{path}, line {number}," for number in range(1, len(whole) + 1)]
    return [unsealed(parsed(line, at, advice), at, advice) for at, line in zip(places, whole, strict=True)]


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], compressed: bool = False) -> int:
    """Write an .npz file, atomically. Returns the checksum of all, for a record that belongs with it to keep."""
    save: Callable[..., None] = np.savez_compressed if compressed else np.savez
    found = 0

    def write(file: IO[bytes]) -> None:
        nonlocal found
        save(file, **arrays)
        with zipfile.ZipFile(file, "a") as archive:
            found = archive_checksum(archive)
            archive.comment = str(found).encode()

    write_atomically(path, write)
    return found


def read_arrays(path: Path, advice: str, expected: int | None = None) -> dict[str, np.ndarray]:
    """All arrays of an .npz file that `write_arrays` wrote, compared with their checksums.

    `expected` is what `write_arrays` returned, where a record kept it. Raises InputError, which ends in `advice`.
    """
    compare_arrays(path, advice, expected)
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def compare_arrays(path: Path, advice: str, expected: int | None = None) -> None:
    """Raises InputError, as `read_arrays` does, unless all of an .npz file is as it was written."""
    refuse_irregular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            comment, found = archive.comment, archive_checksum(archive)
            damaged = archive.testzip() if comment == str(found).encode() else None
    except Exception as error:  # zipfile answers damage with a dozen kinds of exceptions
        if isinstance(error, MemoryError) or isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}): {advice}") from error
    if not comment:
        raise InputError(f"{path} has no checksum: an earlier version wrote it, or it is damaged: {advice}")
    if damaged or comment != str(found).encode():
        raise InputError(f"{path} is damaged or was changed by hand (its checksum differs): {advice}")
    if expected not in (None, found):
        raise InputError(f"{path} is of another time than the record beside it: {advice}")


def archive_checksum(archive: zipfile.ZipFile) -> int:
    """The crc32 of which files a zip archive holds, and where, and of their own checksums."""
    return zlib.crc32(repr([(of.filename, of.header_offset, of.CRC) for of in archive.infolist()]).encode())


def array_checksum(array: np.ndarray, crc32: int = 0) -> int:
    """The crc32 of an array's number format, shape and values, after that of others."""
    crc32 = zlib.crc32(f"{array.dtype} {array.shape}".encode(), crc32)
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, crc32)


def refuse_irregular(path: Path) -> None:
    """Raises InputError for a folder, a pipe or a device, which would be read without an end, or not at all."""
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise InputError(f"{path} is not a regular file")


def refuse_as_target(path: Path) -> None:
    """Raises InputError where no file can be written and then renamed to: for a folder, a pipe or a device."""
    refuse_irregular(path)
    if path.absolute().parent == Path("/dev"):  # /dev/stdout is a link, which a file would take the place of
        raise InputError(f"{path}: files are written whole and then renamed: name a file in another folder")


def refuse_taken(directory: Path) -> None:
    """Raises InputError where --to is there already, and not an empty directory."""
    if os.path.lexists(directory) and not (directory.is_dir() and not any(directory.iterdir())):
        raise InputError(f"--to {directory} is there already: choose a new or an empty directory")


def checksum(path: Path) -> int:
    """The crc32 of a file's bytes."""
    crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            crc = zlib.crc32(chunk, crc)
    return crc
