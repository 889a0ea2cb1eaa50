"""A reader for the files of an offline W&B run. Since version 0.31, the wandb package has a reader in Go only.

A file is b":W&B", a magic number and a version, then blocks of 32 KiB, as in a LevelDB log. Each piece of a record has
a checksum, a length and a type (1 whole, 2 first, 3 middle, 4 last).
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, struct.Struct("<IHB")
WHOLE, LAST = 1, 4


def records(path: Path) -> Iterator[Record]:
    """Yield the records of a file up to its end, which may be incomplete. Wrong checksums are an AssertionError."""
    data, at, pieces = path.read_bytes(), 7, b""
    assert data[:7] == b":W&B" + struct.pack("<HB", 0xBEE1, 0)
    while True:
        if BLOCK - at % BLOCK < HEADER.size:
            at += BLOCK - at % BLOCK
        if at + HEADER.size > len(data):
            return
        checksum, length, kind = HEADER.unpack_from(data, at)
        at += HEADER.size
        piece = data[at : at + length]
        if len(piece) < length:
            return
        assert checksum == zlib.crc32(piece, zlib.crc32(bytes([kind])))
        at, pieces = at + length, pieces + piece
        if kind in (WHOLE, LAST):
            yield Record.FromString(pieces)
            pieces = b""
