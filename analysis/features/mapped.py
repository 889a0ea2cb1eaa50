"""Arrays of an .npz file as memory maps, so that only the needed parts of a large file are read.

Checksums are verified when this process maps a file for the first time. Safetensors files would not do: they hold no
texts and no checksums, and their slices cannot be indexed by the numbers of chosen features.
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
    """The arrays of a file that `write_arrays` wrote, uncompressed, as read-only memory maps."""
    stat = path.stat()
    compare_once(path, advice, (stat.st_ino, stat.st_size, stat.st_mtime_ns))
    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for entry in archive.infolist():
            file.seek(entry.header_offset)
            file.seek(sum(LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))), 1)
            np.lib.format.read_magic(file)
            shape, in_fortran, dtype = np.lib.format.read_array_header_1_0(file)
            name, order = entry.filename.removesuffix(".npy"), "F" if in_fortran else "C"
            if 0 in shape:  # nothing to map
                arrays[name] = np.empty(shape, dtype)
            else:
                arrays[name] = np.memmap(path, dtype, "r", file.tell(), shape, order)  # type: ignore[call-overload]
    return arrays


@lru_cache(1 << 16)
def compare_once(path: Path, advice: str, as_it_is: tuple[int, ...]) -> None:
    compare_arrays(path, advice)
