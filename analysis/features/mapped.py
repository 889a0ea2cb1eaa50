"""Arrays of an .npz file as memory maps, so that only the needed parts of a large file are read.

Checksums are verified when this process maps a file for the first time.
"""

from __future__ import annotations

import struct
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from harvest.files import compare_arrays

LOCAL_HEADER = struct.Struct("<26xHH")  # the lengths of name and extra field, before the entry's data


def mapped_arrays(path: Path, advice: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file as read-only memory maps; compressed ones and scalars are read at once."""
    stat = path.stat()
    compare_once(path, advice, (stat.st_ino, stat.st_size, stat.st_mtime_ns))
    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file, np.load(path, allow_pickle=False) as loaded:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            file.seek(entry.header_offset)
            file.seek(sum(LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))), 1)
            version = np.lib.format.read_magic(file) if entry.compress_type == zipfile.ZIP_STORED else None
            if version not in ((1, 0), (2, 0)):
                arrays[name] = loaded[name]
                continue
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, in_fortran, dtype = read(file)
            if not shape or 0 in shape or dtype.hasobject:
                arrays[name] = loaded[name]
                continue
            order = "F" if in_fortran else "C"
            arrays[name] = np.memmap(path, dtype, "r", file.tell(), shape, order)  # type: ignore[call-overload]
    return arrays


@lru_cache(1 << 16)
def compare_once(path: Path, advice: str, as_it_is: tuple[int, ...]) -> None:
    compare_arrays(path, advice)
