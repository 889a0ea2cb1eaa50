"""Files that are whole or not there, and that tell when they are damaged. No torch, no jax.

JSON records carry a checksum of their content under the key `crc32`. Arrays lie in .npz files, whose format has a
checksum of each array. A file that cannot be read as it was written raises InputError, which names the file.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harvest.errors import InputError

CHECKSUM = "crc32"
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
    plain = json.loads(json.dumps(record, allow_nan=False))
    text = json.dumps({**plain, CHECKSUM: record_checksum(plain)}, indent=1)
    write_atomically(path, lambda file: file.write(f"{text}\n".encode()))


def read_json(path: Path, advice: str) -> dict[str, Any]:
    """A record that `write_json` wrote, without its checksum.

    `advice` says what to do about a damaged file, and ends the message of the InputError: "--force trains it again".
    """
    record = parse_json(path, advice)
    if CHECKSUM not in record:
        raise InputError(f"{path} has no checksum: an earlier version wrote it, or it is damaged: {advice}")
    if record.pop(CHECKSUM) != record_checksum(record):
        raise InputError(f"{path} is damaged or was changed by hand (its checksum differs): {advice}")
    return record


def parse_json(path: Path, advice: str) -> dict[str, Any]:
    """The JSON object in a file that anybody may have written. Raises InputError, which ends in `advice`."""
    refuse_irregular(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}): {advice}") from error
    if not isinstance(record, dict):
        raise InputError(f"{path} is damaged (it holds no JSON object): {advice}")
    return record


def record_checksum(record: Mapping[str, Any]) -> int:
    """The crc32 of a JSON object's content: neither its layout nor the order of its keys changes it."""
    return zlib.crc32(json.dumps(record, sort_keys=True, separators=(",", ":")).encode())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], compressed: bool = False) -> None:
    """Write an .npz file, atomically."""
    save: Callable[..., None] = np.savez_compressed if compressed else np.savez
    write_atomically(path, lambda file: save(file, **arrays))


def read_arrays(path: Path, advice: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz file, each compared with its checksum. Raises InputError, which ends in `advice`."""
    refuse_irregular(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except Exception as error:  # zipfile and numpy answer damage with a dozen kinds of exceptions
        if isinstance(error, OSError | MemoryError) and not isinstance(error, zipfile.BadZipFile):
            raise
        raise InputError(f"{path} is damaged ({type(error).__name__}: {error}): {advice}") from error


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
